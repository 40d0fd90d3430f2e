"""Checkpoints as training scripts write them: which state dict in a file is the network's, and under which prefix."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from convlens.errors import ModelError, near_matches
from convlens.models.weight_files import read_weights_file
from convlens.models.weights import COUNTER, apply_state_dict, check_fit

_log = logging.getLogger(__name__)

Rename = Callable[[str], str | None]  # a file's name -> the network's; None: training only, left out

_DEEPEST = 4  # containers inside containers
# Words for the one network of a file, as a key that holds its state dict or as a prefix of its names.
_PLAIN = frozenset(
    (
        *("state", "state_dict", "model", "model_state", "model_state_dict", "model_dict", "checkpoint"),
        *("net", "net_state_dict", "network", "network_state_dict", "weights", "params"),
        *("module", "_orig_mod", "backbone", "encoder", "classifier"),
    )
)
_AVERAGE = frozenset({"ema", "swa", "average", "averaged", "avg", "shadow"})  # running means of the weights
_OPTIMISER = frozenset({"optimizer", "optimiser", "optim", "opt", "scheduler", "scaler", "momentum", "grad", "grads"})
# Names that are kept for training and never part of a forward pass.
_COUNTS = frozenset({"n_averaged", "num_updates", "decay", "step", "global_step", "initted"})
_TRAINING = re.compile(
    r"((train|val|valid|validation|test)_)?"
    r"(criterion|loss(es|_fn|_func|_function|_module)?|metrics?|acc(uracy)?|auroc|f1(_score)?|confmat|confusion_matrix)"
)
_PARTS = frozenset(
    {"module", "model", "net", "network", "_orig_mod", "backbone", "encoder", "neck", "head", "cls_head"}
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


@dataclass(frozen=True)
class StateDict:
    """Tensors by name as a file holds them in one place; ``others`` are the entries there that are none, by type."""

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    others: Mapping[str, str]

    @property
    def key(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Fit:
    """A state dict, or the part of one under a prefix, that has all of a network's names and shapes.

    ``path`` are the keys and prefixes that lead to it, ``dropped`` prefixes that differ from name to name, ``left_out``
    the names beside it that serve training alone or belong to another network.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    dropped: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def rank(self) -> int:
        """0 for a network under its usual names, 1 under any other, 2 for a running mean of weights."""
        if any(_words(part) & _AVERAGE for part in self.path):
            return 2
        return int(not _PLAIN.issuperset(self.path))


def load_weights(module: nn.Module, path: Path, *, key: str | None = None, rename: Rename | None = None) -> None:
    """Copy a checkpoint's weights into a network, whose names and shapes they must have one for one.

    The state dict may lie under keys (``state_dict``, ``model``, ``state.model`` …), and its names under prefixes
    (``module.``, ``_orig_mod.model.`` …) that are dropped where all names and shapes fit without them. Of several that
    fit, the plain one is taken before running means (``model_ema`` …); ``key`` chooses another, such as ``model_ema``
    or ``state_dict.student``. What is chosen, dropped and left out is logged. Raises ModelError as
    ``read_weights_file`` does, for weights that do not fit, and where several fit and differ.
    """
    content = read_weights_file(path)
    candidates = _chosen(path, list(state_dicts(content)), key)
    if not candidates:
        raise ModelError(f"weights file {path} holds no state dict (name -> tensor); it holds {_summary(content)}")
    own = module.state_dict()
    fits = [fit for candidate in candidates for fit in _fits(own, candidate, rename or str)]
    if not fits:
        _refuse(own, candidates, rename or str, origin=_origin(path, content))
    fit = _preferred(path, fits)
    apply_state_dict(module, fit.tensors, origin=str(path))
    _log_choice(path, fit)


def state_dicts(content: object, path: tuple[str, ...] = ()) -> Iterator[StateDict]:
    """The mappings in a file's content that hold tensors under names, the outermost first; an optimiser's left out."""
    if isinstance(content, list | tuple):
        content = {str(index): item for index, item in enumerate(content[:16])}
    if not isinstance(content, Mapping) or any(_words(part) & _OPTIMISER for part in path):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        others = {name: type(value).__name__ for name, value in named.items() if name not in tensors}
        yield StateDict(path, tensors, others)
    if len(path) < _DEEPEST:
        for name, value in named.items():
            yield from state_dicts(value, (*path, name))


def _words(name: str) -> set[str]:
    return set(re.split(r"[_.\W]+", name.lower()))


def _chosen(path: Path, candidates: list[StateDict], key: str | None) -> list[StateDict]:
    """All candidates, or those that ``key`` names: a place in the file, or a prefix of the names in one."""
    if key is None:
        return candidates
    wanted = key.rstrip(".")
    chosen = [candidate for candidate in candidates if candidate.key == wanted]
    chosen = chosen or [part for candidate in candidates if (part := _part(candidate, wanted))]
    if not chosen:
        known = sorted({name for candidate in candidates for name in _keys(candidate)})
        raise ModelError(
            f"weights file {path} has no weights_key {key!r}{near_matches(key, known)}; there are: "
            f"{', '.join(known[:12])}{', …' if len(known) > 12 else ''}"
        )
    return chosen


def _part(candidate: StateDict, wanted: str) -> StateDict | None:
    prefix = wanted.removeprefix(f"{candidate.key}.") if candidate.path else wanted
    tensors = _under(candidate.tensors, f"{prefix}.")
    return StateDict((*candidate.path, *prefix.split(".")), tensors, {}) if tensors else None


def _keys(candidate: StateDict) -> list[str]:
    """What ``weights_key`` may be for these tensors: the place itself, or a prefix where there are few."""
    starts = list(dict.fromkeys(name.partition(".")[0] for name in candidate.tensors if "." in name))
    within = f"{candidate.key}." if candidate.path else ""
    prefixes = [f"{within}{start}" for start in starts] if len(starts) <= 4 else []
    return [candidate.key, *prefixes] if candidate.path else prefixes


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fits(own: Mapping[str, Any], candidate: StateDict, rename: Rename) -> list[Fit]:
    """The parts of a state dict that fit the network, unless the file has more of a network beside them."""
    required = {name for name in own if not name.endswith(COUNTER)}
    counts = _prefixes(required, candidate.tensors, rename)
    complete = [prefix for prefix, count in counts.items() if count >= len(required)]
    parts = {prefix: _renamed(_under(candidate.tensors, prefix), rename) for prefix in complete}
    if not parts:
        parts = {"": _merged(own, candidate.tensors, rename)}
    fits = [_fit(own, candidate, part, prefix, complete) for prefix, part in parts.items()]
    return [fit for fit in fits if fit is not None]


def _fit(
    own: Mapping[str, Any], candidate: StateDict, part: Mapping[str, Tensor], prefix: str, complete: list[str]
) -> Fit | None:
    """A part with the network's names alone; None where it does not fit, or has more of a network beside it."""
    tensors = {name: part[name] for name in own if name in part}
    siblings = tuple(other for other in complete if other != prefix)
    beyond = {f"{prefix}{name}" for name in part if name not in own}
    beyond |= {name for name in candidate.tensors if not name.startswith(prefix)}
    beside = sorted(name for name in beyond if not _is_in_sibling(name, own, prefix, siblings))
    if check_fit(own, tensors) or not all(_is_auxiliary(name, own) for name in beside):
        return None
    left_out = (*beside, *(f"{other}*" for other in siblings), *candidate.others)
    # Names that are not the file's had prefixes that differ, or are renamed.
    dropped = {} if complete else dict.fromkeys(name.partition(".")[0] for name in candidate.tensors if name not in own)
    return Fit((*candidate.path, *prefix.split(".")[:-1]), tensors, tuple(dropped), left_out)


def _is_in_sibling(name: str, own: Mapping[str, Any], prefix: str, siblings: tuple[str, ...]) -> bool:
    """Whether a name belongs to another complete network of the same state dict, such as the teacher's.

    Of two where one has no prefix of its own, one must be the other's running mean: it might be a further layer.
    """
    around = [other for other in siblings if prefix.startswith(other)]
    if not prefix or (around and not _words(prefix) & _AVERAGE):
        return False  # running means beside a network without prefix are auxiliary by their names
    return any(name.removeprefix(other) in own for other in around) or any(
        name.startswith(other) for other in siblings if other not in around
    )


def _prefixes(names: Iterable[str], tensors: Iterable[str], rename: Rename) -> Counter[str]:
    """How many of the network's names the file has under each prefix; a prefix ends in a dot, or is empty."""
    wanted = set(names)
    return Counter(
        tensor[:start] for tensor in tensors for start in _starts(tensor) if rename(tensor[start:]) in wanted
    )


def _starts(name: str) -> list[int]:
    """Where the parts of a name begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _renamed(tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    return {name: tensor for old, tensor in tensors.items() if (name := rename(old)) is not None}


def _merged(own: Mapping[str, Any], tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """The tensors without prefixes that differ (``backbone.conv1``, ``head.fc``); none where two get the same name."""
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = [rename(name[start:]) for start in _starts(name) if _PARTS.issuperset(name[:start].split(".")[:-1])]
        if None in bare:
            continue
        short = next((short for short in bare if short in own), None) or name
        if short in merged:
            return {}
        merged[short] = tensor
    return merged


def _is_auxiliary(name: str, own: Mapping[str, Any]) -> bool:
    """Whether an entry serves training alone: a loss, a metric, a count, or a running mean of the network's own."""
    first, _, rest = _bare(name).partition(".")
    if name.endswith(COUNTER) or _TRAINING.fullmatch(first) or (first in _COUNTS and not rest):
        return True
    # Not by the word alone: there are layers called ema. Some scripts write a mean's names without their dots.
    means = own.keys() | _COUNTS | {kept.replace(".", "") for kept in own}
    return bool(_words(first) & _AVERAGE) and _bare(rest) in means


def _bare(name: str) -> str:
    """A name without the wrappers before it, such as ``module.``."""
    first, _, rest = name.partition(".")
    return _bare(rest) if rest and first in _PARTS else name


def _preferred(path: Path, fits: list[Fit]) -> Fit:
    """The fit of the lowest rank; ModelError where two of that rank differ."""
    best = min(fits, key=lambda fit: fit.rank)
    distinct = [fit for fit in fits if fit is not best and not _equal(fit, best)]
    rivals = [fit for fit in distinct if fit.rank == best.rank]
    if rivals:
        choices = [fit.key or "(the file's top level)" for fit in (best, *rivals)]
        raise ModelError(
            f"weights file {path} holds {len(choices)} state dicts that fit the network and differ: "
            f"{', '.join(choices)}; choose one with weights_key={next(fit.key for fit in (best, *rivals) if fit.key)}"
        )
    if distinct:
        others = ", ".join(fit.key or "(the file's top level)" for fit in distinct)
        _log.warning(
            "weights file %s: took %s; %s fits as well, and weights_key=%s chooses it",
            *(path, best.key or "the file's top level", others, distinct[0].key),
        )
    return best


def _equal(fit: Fit, other: Fit) -> bool:
    return all(
        tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name])
        for name, tensor in fit.tensors.items()
        if not name.endswith(COUNTER)
    )


def _log_choice(path: Path, fit: Fit) -> None:
    if fit.path:
        _log.info("weights file %s: the weights lie under %s", path, fit.key)
    if fit.dropped:
        _log.info("weights file %s: dropped the prefixes %s", path, ", ".join(fit.dropped))
    if fit.left_out:
        more = ", …" if len(fit.left_out) > 8 else ""
        _log.info("weights file %s: left out %s%s", path, ", ".join(fit.left_out[:8]), more)


def _refuse(own: Mapping[str, Any], candidates: list[StateDict], rename: Rename, *, origin: str) -> NoReturn:
    """Raise ModelError with what the part nearest to the network lacks and has beyond it."""
    parts = [part for candidate in candidates for part in _parts(own, candidate, rename)]
    nearest = max(parts, key=lambda part: sum(name in own for name in part.tensors))
    beside = {name: tensor for name, tensor in nearest.beside.items() if not _is_auxiliary(name, own)}
    inside = {name: tensor for name, tensor in nearest.tensors.items() if name in own or not _is_auxiliary(name, own)}
    odd = [f"{name} is a {kind}" for name, kind in nearest.others.items() if name in own]
    clauses = [
        check_fit(own, {**beside, **inside}),
        f"entries that are no tensors: {', '.join(odd[:4])}" if odd else "",
        f"weights_key={nearest.key} takes that part alone" if beside and not check_fit(own, inside) else "",
    ]
    where = f" (compared with what lies under {nearest.key})" if nearest.path else ""
    raise ModelError(f"the weights of {origin} do not fit the network{where}: {'; '.join(filter(None, clauses))}")


@dataclass(frozen=True)
class _Part(StateDict):
    """The tensors under one prefix, without it, and those ``beside`` it, with their whole names."""

    beside: Mapping[str, Tensor]


def _parts(own: Mapping[str, Any], candidate: StateDict, rename: Rename) -> Iterator[_Part]:
    """The tensors without prefix, with that dropped which most names have, and with prefixes that differ dropped."""
    counts = _prefixes(own, candidate.tensors, rename)
    for prefix in dict.fromkeys(["", *(prefix for prefix, _ in counts.most_common(1))]):
        tensors = _renamed(_under(candidate.tensors, prefix), rename)
        beside = {name: tensor for name, tensor in candidate.tensors.items() if not name.startswith(prefix)}
        yield _Part((*candidate.path, *prefix.split(".")[:-1]), tensors, candidate.others, beside)
    yield _Part(candidate.path, _merged(own, candidate.tensors, rename), candidate.others, {})


def _origin(path: Path, content: object) -> str:
    arch = content.get("arch") if isinstance(content, Mapping) else None
    hints = [f"which names its architecture {arch!r}"] if isinstance(arch, str) else []
    hints += ["one of several shards: give the .index.json beside it"] if _SHARD.search(path.name) else []
    return f"{path} ({'; '.join(hints)})" if hints else str(path)


def _summary(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    held = [f"{name!r} (a {type(value).__name__})" for name, value in content.items()]
    return f"{', '.join(held[:6])}{', …' if len(held) > 6 else ''}" or "nothing"
