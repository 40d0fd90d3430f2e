"""The verdict in words: a sentence per method, what to use by default, and what the numbers cannot say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convlens.evaluation import wording
from convlens.evaluation.metrics import metric
from convlens.evaluation.statistics import FEW
from convlens.evaluation.summary import FAITHFUL_GROUPS
from convlens.evaluation.wording import capitalised, difference, estimate, is_shown, method_name, verb

_UNCHANGED = 0.9
_PURPOSE = {"detail": "for detail", "regions": "for regions"}
_RIVALS = 3
_ENOUGH = 50

Summary = Mapping[str, Any]


def verdict(summary: Summary) -> dict[str, Any]:
    """``headline``, ``recommended`` methods, ``sentences`` by method and ``notes`` for a ``summarise``d evaluation.

    Recommended is of each kind of method (fine detail, regions) the cheapest among those that have a map for every
    image, are shown to be better than every baseline, and are not shown to be worse than the best of their kind; the
    kind of the best method stands first. It is empty, and the headline says why, where there is none, where fewer than
    ``FEW`` images were measured, and where no baseline was.
    """
    reason = _no_recommendation(summary)
    recommended = [] if reason else _recommended(summary)
    return {
        "headline": reason or _headline(summary, recommended),
        "recommended": recommended,
        "sentences": {name: _sentence(summary, name) for name in _methods(summary)},
        "notes": _notes(summary),
    }


def _methods(summary: Summary) -> list[str]:
    return [name for name in summary["methods"] if name not in summary["baselines"]]


def _ranked_methods(summary: Summary) -> list[str]:
    return [name for name in summary["ranking"] if name not in summary["baselines"]]


def _is_ranked(summary: Summary) -> bool:
    main = summary["main_metric"]
    return bool(main and metric(main).group in FAITHFUL_GROUPS)


def _main(summary: Summary, name: str) -> dict[str, Any]:
    return dict(summary["methods"][name]["metrics"].get(summary["main_metric"], {"n": 0}))


def _measured(summary: Summary) -> int:
    """Images that the most complete method has a main value for."""
    return max((_main(summary, name)["n"] for name in _methods(summary)), default=0)


def _oriented(summary: Summary, against: Mapping[str, Any]) -> float:
    """A shown difference: above 0 where the method is better, below where it is worse; 0 where none is shown."""
    sign = -1 if metric(summary["main_metric"]).better == "lower" else 1
    return sign * float(against["difference"]) if is_shown(against) else 0.0


def _unbeaten(summary: Summary, name: str) -> list[str]:
    """Baselines than which the method is not shown to be better, in the order in which the evaluation lists them."""
    against = summary["methods"][name]["against_baselines"]
    return [each for each in summary["baselines"] if each in against and _oriented(summary, against[each]) <= 0]


def _beats_baselines(summary: Summary, name: str) -> bool:
    return bool(summary["methods"][name]["against_baselines"]) and not _unbeaten(summary, name)


# What is recommended


def _no_recommendation(summary: Summary) -> str:
    """Why nothing can be recommended, or ''."""
    pictures, measured = summary["pictures"], _measured(summary)
    if not pictures:
        return "No picture could be evaluated, so there is no verdict."
    if not _is_ranked(summary):
        return (
            "Nothing that was measured tells how well the maps find what the score rests on (insertion, deletion, road "
            "and infidelity do): no method is ranked or recommended."
        )
    if not measured:
        return "No method has a map of any picture, so there is no verdict."
    if pictures == 1:
        return f"One picture allows no verdict; evaluate at least {FEW}, better {_ENOUGH}."
    if measured < FEW:
        who = f"Your {pictures} pictures" if measured == pictures else f"{measured} of your {pictures} pictures"
        return f"{who} are too few to recommend a method; evaluate at least {FEW}, better {_ENOUGH}."
    if not summary["best_baseline"]:
        return "No baseline was measured, so no method is shown to be better than chance: none is recommended."
    better = [name for name in _ranked_methods(summary) if _beats_baselines(summary, name)]
    if not better:
        return f"No method is shown to be better than every baseline {_where(summary, measured)}: none is recommended."
    if not any(_is_eligible(summary, name) for name in better):
        return "Each method that is better than the baselines has no map on some pictures: none is recommended."
    return ""


def _is_eligible(summary: Summary, name: str) -> bool:
    complete = summary["methods"][name]["failed"]["count"] == 0
    return complete and _main(summary, name)["n"] >= FEW and _beats_baselines(summary, name)


def _recommended(summary: Summary) -> list[str]:
    eligible = [name for name in _ranked_methods(summary) if _is_eligible(summary, name)]
    kinds = dict.fromkeys(summary["methods"][name]["kind"] for name in eligible)
    of_kinds = ([name for name in eligible if summary["methods"][name]["kind"] == kind] for kind in kinds)
    return [_cheapest(summary, [each for each in names if _is_level(summary, each)] or names[:1]) for names in of_kinds]


def _is_level(summary: Summary, name: str) -> bool:
    """Whether the method is not shown to be worse than the best of its kind."""
    against = summary["methods"][name]["against_best_of_kind"]
    return against is None or _oriented(summary, against) >= 0


def _cheapest(summary: Summary, names: Sequence[str]) -> str:
    times = {name: summary["methods"][name]["seconds"] for name in names}
    return min(names, key=lambda name: math.inf if times[name] is None else times[name])


def _headline(summary: Summary, recommended: Sequence[str]) -> str:
    uses = [f"{method_name(name)} {_PURPOSE[summary['methods'][name]['kind']]}" for name in recommended]
    best = summary["best"]
    title = metric(summary["main_metric"]).title
    main = _main(summary, best)
    return (
        f"For this model use {wording.listing(uses)}. "
        f"Best by {title} {_where(summary, main['n'])}: {method_name(best)} ({estimate(main)})."
    )


# A sentence per method


def _sentence(summary: Summary, name: str) -> str:
    method = summary["methods"][name]
    failed = method["failed"]
    if failed["count"] and failed["count"] == summary["pictures"]:
        where = "your one picture" if failed["count"] == 1 else f"any of your {failed['count']} pictures"
        return f"{capitalised(method_name(name))} {verb(name, 'has', 'have')} no map on {where}{_because(failed)}."
    claims = _is_ranked(summary) and _main(summary, name)["n"] > 1
    main = _claim(summary, name) if claims else _figures(summary, name)
    sentences = ["; ".join(filter(None, (main, _sanity(summary, name))))]
    if claims:
        sentences.append(_localisation(method))
    if failed["count"]:
        has = verb(name, "It has", "They have")
        sentences.append(f"{has} no map on {failed['count']} of your {summary['pictures']} pictures{_because(failed)}")
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _claim(summary: Summary, name: str) -> str:
    """How well the method finds what the score rests on, compared with baselines first, then with the best."""
    unbeaten = _unbeaten(summary, name)
    if unbeaten:
        return _no_better(summary, name, unbeaten)
    if name == summary["best"]:
        return _best(summary, name)
    against = summary["methods"][name]["against_best"]
    comparable = against is not None and against["low"] is not None
    return _beside_the_best(summary, name, against) if comparable else _figures(summary, name)


def _no_better(summary: Summary, name: str, unbeaten: Sequence[str]) -> str:
    main = _main(summary, name)
    against = summary["methods"][name]["against_baselines"]
    strongest = next(each for each in summary["ranking"] if each in unbeaten)
    reference = f" against {method_name(strongest)}" if len(unbeaten) > 1 else ""
    # So few pictures show of hardly any method that it is better: that is no finding about the method.
    how = "no better" if main["n"] >= FEW else "not shown to be better"
    return (
        f"{capitalised(method_name(name))} {verb(name, 'is', 'are')} {how} than "
        f"{wording.listing([method_name(each) for each in unbeaten], 'or')} {_where(summary, main['n'])} "
        f"({estimate(main)}; {difference(against[strongest])}{reference})"
    )


def _best(summary: Summary, name: str) -> str:
    main = _main(summary, name)
    start = f"{capitalised(_where(summary, main['n']))} {_finds(name)}"
    baseline = summary["methods"][name]["against_baseline"]
    if len(_ranked_methods(summary)) == 1:
        if baseline is None:
            return f"{start} by {estimate(main)}, with nothing to compare it with"
        figures = f"{estimate(main)}; {difference(baseline)} against {method_name(baseline['baseline'])}"
        return f"{start} better than every baseline ({figures})"
    rivals = [each for each in _ranked_methods(summary) if _may_be_as_good(summary, each)]
    rest = f"no difference to {_some(rivals)} is shown" if rivals else ""
    cost = _cost(summary, name, "occlusion")
    return "; ".join(filter(None, (", ".join(filter(None, (f"{start} best ({estimate(main)})", cost))), rest)))


def _beside_the_best(summary: Summary, name: str, against: Mapping[str, Any]) -> str:
    main, best = _main(summary, name), summary["best"]
    figures = f"({estimate(main)}; {difference(against)})"
    shown = _oriented(summary, against)
    if shown == 0:
        seen = f"As far as {_where(summary, main['n']).removeprefix('on ')} show"
        text = f"{seen}, {_finds(name)} no worse than {method_name(best)}, the best {figures}"
    else:
        how = f"less well than {method_name(best)}, the best" if shown < 0 else f"better than {method_name(best)}"
        text = f"{capitalised(_where(summary, main['n']))} {_finds(name)} {how} {figures}"
    return ", ".join(filter(None, (text, _cost(summary, name, best))))


def _finds(name: str) -> str:
    return f"{method_name(name)} {verb(name, 'finds', 'find')} what the score rests on"


def _where(summary: Summary, n: int) -> str:
    pictures = summary["pictures"]
    return f"on your {pictures} pictures" if n == pictures else f"on {n} of your {pictures} pictures"


def _may_be_as_good(summary: Summary, name: str) -> bool:
    against = summary["methods"][name]["against_best"]
    return against is not None and not is_shown(against) and not _unbeaten(summary, name)


def _some(names: Sequence[str]) -> str:
    shown = [method_name(name) for name in names]
    return wording.listing(shown if len(shown) <= _RIVALS else [*shown[: _RIVALS - 1], f"{len(shown) - 2} others"])


def _cost(summary: Summary, name: str, reference: str) -> str:
    """The cost as a ratio to the best method's; the best's own is told by occlusion's."""
    methods = summary["methods"]
    own, other = (methods.get(each, {}).get("seconds") for each in (name, reference))
    if own is None or other is None or name == reference:
        return ""
    return wording.cost(own, other, "the" if reference == summary["best"] else f"{method_name(reference)}'s")


def _figures(summary: Summary, name: str) -> str:
    """Values without any claim: the main one where methods are ranked, else all."""
    method = summary["methods"][name]
    metrics = method["metrics"]
    names = [summary["main_metric"]] if _is_ranked(summary) else list(metrics)
    values = [f"{metric(each).title} {estimate(metrics[each])}" for each in names if each in metrics]
    seconds = f"{wording.seconds(method['seconds'])} a picture" if method["seconds"] is not None else ""
    text = "; ".join(filter(None, (", ".join(values) or "nothing was measured", seconds)))
    return f"{capitalised(method_name(name))}: {text}"


def _sanity(summary: Summary, name: str) -> str:
    top = summary["methods"][name]["metrics"].get("randomised_top")
    if top is None or top["n"] < 2 or top["mean"] < _UNCHANGED:
        return ""
    return (
        f"{verb(name, 'its', 'their')} maps barely change when the top layer is randomised (rank correlation "
        f"{estimate(top)}): do not use them to debug the top layers"
    )


def _localisation(method: Mapping[str, Any]) -> str:
    measured = {each: values for each, values in method["metrics"].items() if metric(each).group == "localisation"}
    if not measured:
        return ""
    n = max(values["n"] for values in measured.values())
    figures = ", ".join(f"{metric(each).title} {estimate(values)}" for each, values in measured.items())
    return f"Localisation on {n} picture{'s' if n > 1 else ''}: {figures}"


def _because(failed: Mapping[str, Any]) -> str:
    reason = " ".join(failed["reason"].split()).rstrip(".")
    return f": {reason}" if reason else ""


# What the numbers cannot say


def _notes(summary: Summary) -> list[str]:
    pictures, measured, failures = summary["pictures"], _measured(summary), len(summary["failures"])
    ranked = _is_ranked(summary) and measured > 0
    notes = []
    if ranked:
        main = metric(summary["main_metric"])
        direction = "less" if main.better == "lower" else "more"
        notes.append(f"Ranked by {main.title}, where {direction} is better ({main.source}).")
    if pictures > 1:
        notes.append(
            "± is half the width of a 95 % bootstrap interval over the pictures; differences are taken on the same "
            "pictures."
        )
    if ranked and 1 < measured < FEW:
        notes.append(f"{measured} pictures are few: their intervals are rough.")
    if ranked and measured > 1 and len(_ranked_methods(summary)) > 1:
        notes.append("The best method is chosen on the same pictures, which favours it a little.")
    if failures:
        notes.append(f"{failures} picture{'s' if failures > 1 else ''} could not be evaluated.")
    return notes
