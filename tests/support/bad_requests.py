"""Pictures and parameters that must be refused, each with its code and words that tell what to do instead."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from bad_images import WHOLE, bombs, damaged, foreign

JSON = {"content-type": "application/json"}
CONTROL = "\x00\r\n\x1b[31m\u2028\u202e\x7f\n[METRICS]a.Count:1|#b:c|#hostname:h\n[PID]1"
MOST = 10**400  # more than any number that a float can hold


@dataclass(frozen=True)
class Bad:
    """``sent`` is what httpx sends, to ``route`` of some model; ``said`` is a part of the message."""

    status: int
    said: str
    sent: dict[str, Any]
    route: str = "predictions/{}"
    field: str | None = None

    def to(self, model: str) -> dict[str, Any]:
        return {"path": self.route.format(model), **self.sent}


def form(params: Any) -> dict[str, Any]:
    text = params if isinstance(params, str | bytes) else json.dumps(params)
    return {"files": {"data": ("cat.png", WHOLE["PNG"]), "params": (None, text)}}


def body(said: Any) -> dict[str, Any]:
    return {"content": said if isinstance(said, bytes) else json.dumps(said).encode(), "headers": JSON}


def asked(field: str | None, said: str, params: Any) -> Bad:
    """Parameters that cannot be honoured."""
    return Bad(422, said, form(params), field=field)


def option(method: str, said: str, field: str = "", **options: Any) -> Bad:
    name = field or next(iter(options))
    return asked(f"methods.0.options.{name}", said, {"methods": [{"method": method, "options": options}]})


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, Bad]:
    found = {what: Bad(400, "end", {"content": data}) for what, data in damaged().items()}
    found |= {what: Bad(400, "send a JPEG, PNG, WebP", {"content": data}) for what, data in foreign().items()}
    return found | {what: Bad(413, "send a smaller one", {"content": data}) for what, data in bombs().items()}


# --- parameters -------------------------------------------------------------------------------------------------------

_DEEP = "[" * 10_000 + "]" * 10_000
_WRONG: dict[str, tuple[list[Any], str]] = {
    "explain": ([1, "true", None, []], "valid boolean"),
    "topk": ([0, -1, 101, 2**63, MOST, 5.5, 1e308, True, "5", None, [5]], "valid integer|less than|greater than"),
    "target": ([-1, True, 1.5, [1], "", "x" * 257], "a class index from 0, a label, or a neuron"),
    "methods": (["saliency", 5, {"method": "saliency"}], "valid list"),
    "output": (["array", {}, ["array"] * 4], "valid list|at most 3"),
    "dtype": (["<f8", ">f4", "", CONTROL, 4], "'<f4' or '<f2'"),
    "reduce": (["mean", CONTROL, False], "'none', 'abs_max' or 'sum'"),
    "size": (["huge", 4096], "'model' or 'original'"),
    "neighbours": ([0, -1, 1001, 2.5, "3"], "valid integer|less than|greater than"),
    "thumbnails": (["yes", 0], "valid boolean"),
    "accept": (["text/html", "*/*", CONTROL], "'application/json'"),
    "deadline_ms": ([0, -1, 1e300, "soon", MOST], "valid number|less than|greater than|finite"),
    "sent_at": ([-1, "now"], "valid number|greater than"),
    "seed": ([-1, 2**64, 0.5, "7"], "valid integer|less than|greater than"),
    "request_id": (["a b", "a\nb", CONTROL, "x" * 129, 5], "valid string|match pattern|at most 128"),
}


def wrong_types() -> dict[str, Bad]:
    """Values of another type, too small, too large, or none of those there are, for every parameter."""
    return {
        f"{key}={json.dumps(value)[:20]} ({n})": asked(key, said, {key: value})
        for key, (values, said) in _WRONG.items()
        for n, value in enumerate(values)
    }


def neurons() -> dict[str, Bad]:
    """Neurons that are none, and methods that know none."""
    first = {"layer": "conv_stem", "channel": 0}
    wrong: dict[str, tuple[str, str, dict[str, Any]]] = {
        "nothing": ("target.layer", "field required", {}),
        "no channel": ("target.channel", "field required", {"layer": "conv_stem"}),
        "a channel below 0": ("target.channel", "greater than", first | {"channel": -1}),
        "a channel in words": ("target.channel", "valid integer", first | {"channel": "0"}),
        "a row alone": ("target", "target: y and x go together", first | {"y": 1}),
        "half a row": ("target.y", "valid integer", first | {"y": 0.5, "x": 1}),
        "a key too many": ("target.z", "known keys: layer, channel", first | {"z": 1}),
        "a layer of control characters": ("target.layer", "no layer", first | {"layer": CONTROL}),
        "a layer that is no text": ("target.layer", "valid string", first | {"layer": 5}),
    }
    found = {
        f"a neuron: {what}": asked(field, said, {"target": target, "methods": ["saliency"]})
        for what, (field, said, target) in wrong.items()
    }
    return found | {"a neuron's occlusion": asked(None, "neuron", {"target": first, "methods": ["occlusion"]})}


def params() -> dict[str, Bad]:
    """Parameters that are no object, no JSON, or ask for what there is not."""
    not_json = "params is not valid JSON"
    return {
        "an unknown key": asked("topK", "did you mean topk? known keys: explain, topk", {"topK": 3}),
        "a key of control characters": asked(None, "known keys: explain, topk", {CONTROL: 1}),
        "a key of a megabyte": asked(None, "known keys: explain, topk", {"\x00" * 1_000_000: 1}),
        "a list": asked("params", "must be a JSON object", [1]),
        "null": asked("params", "must be a JSON object", "null"),
        "no text": asked("params", not_json, ""),
        "single quotes": asked("params", not_json, "{'topk': 3}"),
        "half an object": asked("params", not_json, '{"topk": 3'),
        "no UTF-8": asked("params", not_json, b'{"target": "\xff\xfe\xfd"}'),
        "NaN": asked("params", "NaN is not JSON", '{"topk": NaN}'),
        "-Infinity": asked("params", "-Infinity is not JSON", '{"deadline_ms": -Infinity}'),
        "a number of 5,000 digits": asked("params", not_json, '{"topk": 1' + "0" * 5000 + "}"),
        "10,000 levels": asked("params", not_json, f'{{"topk": {_DEEP}}}'),
        "950 levels": asked("topk", "valid integer", f'{{"topk": {_DEEP[9050:10950]}}}'),
        "half a surrogate": asked(
            "target", "a class index from 0, a label, or a neuron", r'{"target": "\ud83d", "methods": ["saliency"]}'
        ),
        "a label of control characters": asked("target", "no class", {"target": CONTROL, "methods": ["saliency"]}),
        "a class out of range": asked("target", "there are 0..999", {"target": 1000, "methods": ["saliency"]}),
        "a class of 4,000 digits": asked("target", "no class 1000", {"target": 10**3999, "methods": ["saliency"]}),
        "an ambiguous label": asked(
            "target", "2 classes are labelled", {"target": "CARDIGAN", "methods": ["saliency"]}
        ),
        "a misspelt label": asked("target", "mean tiger cat", {"target": "tiger cot", "methods": ["saliency"]}),
        "an output of no kind": asked("output.0", "'array', 'overlay' or 'heatmap'", {"output": ["picture"]}),
        "a deadline that no work can keep": asked(
            "deadline_ms",
            "deadline_ms allows",
            {"deadline_ms": 50, "methods": [{"method": "smoothgrad", "options": {"samples": 600}}]},
        ),
        "a deadline that is over": Bad(
            504, "allow more", form({"deadline_ms": 1000, "sent_at": time.time() - 60}), field="deadline_ms"
        ),
    }


def methods() -> dict[str, Bad]:
    there_are = "there are: deconvnet, grad_cam"
    twice = [{"method": "saliency", "id": "a"}, {"method": "grad_cam", "id": "a"}]
    sixteen = [{"method": "smoothgrad", "id": str(n), "options": {"samples": 1000}} for n in range(16)]
    many = [{"method": "saliency", "id": str(n)} for n in range(200)]
    return {
        "an unknown method": asked("methods.0.method", there_are, {"methods": ["occlude"]}),
        "a method of control characters": asked("methods.0.method", there_are, {"methods": [CONTROL]}),
        "a method of no name": asked("methods.0.method", "at least 1", {"methods": [""]}),
        "null among methods": asked("methods.0", "a method's name", {"methods": [None]}),
        "a method without its name": asked("methods.0.method", "field required", {"methods": [{"name": "saliency"}]}),
        "17 methods": asked("methods", "at most 16", {"methods": ["saliency"] * 17}),
        "200 methods": asked("methods", "at most 16", {"methods": many}),
        "one id twice": asked("methods", "give each its own", {"methods": twice}),
        "an id that is a path": asked(
            "methods.0.id", "match pattern", {"methods": [{"method": "saliency", "id": "../../etc/passwd"}]}
        ),
        "an id of control characters": asked(
            "methods.0.id", "match pattern", {"methods": [{"method": "saliency", "id": CONTROL}]}
        ),
        "an unknown option": option("occlusion", "did you mean window? known keys: window", windows=3),
        "an option of a method without any": option("deconvnet", "known keys: none", window=3),
        "a window of 0": option("occlusion", "greater than", window=0),
        "a negative window": option("occlusion", "greater than", window=-8),
        "a window of text": option("occlusion", "valid integer", window="8"),
        "half a window": option("occlusion", "valid integer", window=8.5),
        "a window wider than the picture": option("occlusion", "less than or equal to 4096", window=10**9),
        "a stride of 0": option("occlusion", "greater than", stride=0),
        "a stride that skips": option("occlusion", "would skip pixels", "stride", window=8, stride=9),
        "a fill beyond numbers": Bad(
            422, "finite number", form('{"methods": [{"method": "occlusion", "options": {"fill": 1e999}}]}')
        ),
        "a score of no kind": option("saliency", "'logit' or 'probability'", score="sum"),
        "a layer that is not there": Bad(
            422, "its first are conv_stem", form({"methods": [{"method": "grad_cam", "options": {"layer": CONTROL}}]})
        ),
        "no samples": option("smoothgrad", "greater than", samples=0),
        "a million samples": option("smoothgrad", "less than", samples=10**6),
        "one step": option("integrated_gradients", "greater than", steps=1),
        "16,000 samples": asked("methods", "of this", {"methods": sixteen}),
        "47,089 windows": Bad(
            422,
            "or larger would fit",
            form({"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 1}}]}),
        ),
        "more neighbours than there are": asked("options.k", "use 1..50", {"neighbours": 999}),
    }


KINDS = pictures, wrong_types, neurons, params, methods
