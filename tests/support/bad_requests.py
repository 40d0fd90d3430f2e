"""Pictures and parameters that must be refused, each with its code and words that tell what to do instead."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from bad_images import WHOLE, bombs, damaged, foreign

from convlens.cli.photographs import OTHERS

JSON = {"content-type": "application/json"}
CONTROL = "\x00\r\n\x1b[31m\u2028\u202e\x7f\n[METRICS]a.Count:1|#b:c|#hostname:h\n[PID]1"
MOST = 10**400  # more than any number that a float can hold


@dataclass(frozen=True)
class BadRequest:
    """``request`` is what httpx sends, to ``route`` of some model; ``message`` is a part of the refusal, or several
    between bars.
    """

    status: int
    message: str
    request: dict[str, Any]
    route: str = "predictions/{}"
    field: str | None = None

    def to(self, model: str) -> dict[str, Any]:
        return {"path": self.route.format(model), **self.request}


def form(params: Any) -> dict[str, Any]:
    text = params if isinstance(params, str | bytes) else json.dumps(params)
    return {"files": {"data": ("cat.png", WHOLE["PNG"]), "params": (None, text)}}


def body(said: Any) -> dict[str, Any]:
    return {"content": said if isinstance(said, bytes) else json.dumps(said).encode(), "headers": JSON}


def bad_params(field: str | None, said: str, params: Any) -> BadRequest:
    """Parameters that cannot be honoured."""
    return BadRequest(422, said, form(params), field=field)


def bad_option(method: str, said: str, field: str = "", **options: Any) -> BadRequest:
    name = field or next(iter(options))
    return bad_params(f"methods.0.options.{name}", said, {"methods": [{"method": method, "options": options}]})


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, BadRequest]:
    found = {what: BadRequest(400, "end", {"content": data}) for what, data in damaged().items()}
    found |= {what: BadRequest(400, "send a JPEG, PNG, WebP", {"content": data}) for what, data in foreign().items()}
    return found | {what: BadRequest(413, "send a smaller one", {"content": data}) for what, data in bombs().items()}


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


def wrong_types() -> dict[str, BadRequest]:
    """Values of another type, too small, too large, or none of those there are, for every parameter."""
    return {
        f"{key}={json.dumps(value)[:20]} ({n})": bad_params(key, said, {key: value})
        for key, (values, said) in _WRONG.items()
        for n, value in enumerate(values)
    }


def neurons() -> dict[str, BadRequest]:
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
        f"a neuron: {what}": bad_params(field, said, {"target": target, "methods": ["saliency"]})
        for what, (field, said, target) in wrong.items()
    }
    return found | {"a neuron's occlusion": bad_params(None, "neuron", {"target": first, "methods": ["occlusion"]})}


def params() -> dict[str, BadRequest]:
    """Parameters that are no object, no JSON, or ask for what there is not."""
    not_json = "params is not valid JSON"
    return {
        "an unknown key": bad_params("topK", "did you mean topk? known keys: explain, topk", {"topK": 3}),
        "a key of control characters": bad_params(None, "known keys: explain, topk", {CONTROL: 1}),
        "a key of a megabyte": bad_params(None, "known keys: explain, topk", {"\x00" * 1_000_000: 1}),
        "a list": bad_params("params", "must be a JSON object", [1]),
        "null": bad_params("params", "must be a JSON object", "null"),
        "no text": bad_params("params", not_json, ""),
        "single quotes": bad_params("params", not_json, "{'topk': 3}"),
        "half an object": bad_params("params", not_json, '{"topk": 3'),
        "no UTF-8": bad_params("params", not_json, b'{"target": "\xff\xfe\xfd"}'),
        "NaN": bad_params("params", "NaN is not JSON", '{"topk": NaN}'),
        "-Infinity": bad_params("params", "-Infinity is not JSON", '{"deadline_ms": -Infinity}'),
        "a number of 5,000 digits": bad_params("params", not_json, '{"topk": 1' + "0" * 5000 + "}"),
        "10,000 levels": bad_params("params", not_json, f'{{"topk": {_DEEP}}}'),
        "950 levels": bad_params("topk", "valid integer", f'{{"topk": {_DEEP[9050:10950]}}}'),
        "half a surrogate": bad_params(
            "target", "a class index from 0, a label, or a neuron", r'{"target": "\ud83d", "methods": ["saliency"]}'
        ),
        "a label of control characters": bad_params("target", "no class", {"target": CONTROL, "methods": ["saliency"]}),
        "a class out of range": bad_params("target", "there are 0..999", {"target": 1000, "methods": ["saliency"]}),
        "a class of 4,000 digits": bad_params("target", "no class 1000", {"target": 10**3999, "methods": ["saliency"]}),
        "an ambiguous label": bad_params(
            "target", "2 classes are labelled", {"target": "CARDIGAN", "methods": ["saliency"]}
        ),
        "a misspelt label": bad_params("target", "mean tiger cat", {"target": "tiger cot", "methods": ["saliency"]}),
        "an output of no kind": bad_params("output.0", "'array', 'overlay' or 'heatmap'", {"output": ["picture"]}),
        "a deadline that no work can keep": bad_params(
            "deadline_ms",
            "deadline_ms allows",
            {"deadline_ms": 50, "methods": [{"method": "smoothgrad", "options": {"samples": 600}}]},
        ),
        "a deadline that is over": BadRequest(
            504, "allow more", form({"deadline_ms": 1000, "sent_at": time.time() - 60}), field="deadline_ms"
        ),
    }


def methods() -> dict[str, BadRequest]:
    there_are = "there are: deconvnet, deep_lift"
    twice = [{"method": "saliency", "id": "a"}, {"method": "grad_cam", "id": "a"}]
    sixteen = [{"method": "smoothgrad", "id": str(n), "options": {"samples": 1000}} for n in range(16)]
    many = [{"method": "saliency", "id": str(n)} for n in range(200)]
    return {
        "an unknown method": bad_params("methods.0.method", there_are, {"methods": ["occlude"]}),
        "a method of control characters": bad_params("methods.0.method", there_are, {"methods": [CONTROL]}),
        "a method of no name": bad_params("methods.0.method", "at least 1", {"methods": [""]}),
        "null among methods": bad_params("methods.0", "a method's name", {"methods": [None]}),
        "a method without its name": bad_params(
            "methods.0.method", "field required", {"methods": [{"name": "saliency"}]}
        ),
        "33 methods": bad_params("methods", "at most 32", {"methods": ["saliency"] * 33}),
        "200 methods": bad_params("methods", "at most 32", {"methods": many}),
        "one id twice": bad_params("methods", "give each its own", {"methods": twice}),
        "an id that is a path": bad_params(
            "methods.0.id", "match pattern", {"methods": [{"method": "saliency", "id": "../../etc/passwd"}]}
        ),
        "an id of control characters": bad_params(
            "methods.0.id", "match pattern", {"methods": [{"method": "saliency", "id": CONTROL}]}
        ),
        "an unknown option": bad_option("occlusion", "did you mean window? known keys: window", windows=3),
        "an option of a method without any": bad_option("deconvnet", "known keys: none", window=3),
        "a window of 0": bad_option("occlusion", "greater than", window=0),
        "a negative window": bad_option("occlusion", "greater than", window=-8),
        "a window of text": bad_option("occlusion", "valid integer", window="8"),
        "half a window": bad_option("occlusion", "valid integer", window=8.5),
        "a window wider than the picture": bad_option("occlusion", "less than or equal to 4096", window=10**9),
        "a stride of 0": bad_option("occlusion", "greater than", stride=0),
        "a stride that skips": bad_option("occlusion", "would skip pixels", "stride", window=8, stride=9),
        "a fill beyond numbers": BadRequest(
            422, "finite number", form('{"methods": [{"method": "occlusion", "options": {"fill": 1e999}}]}')
        ),
        "a score of no kind": bad_option("saliency", "'logit' or 'probability'", score="sum"),
        "a layer that is not there": BadRequest(
            422, "its first are conv_stem", form({"methods": [{"method": "grad_cam", "options": {"layer": CONTROL}}]})
        ),
        "no samples": bad_option("smoothgrad", "greater than", samples=0),
        "a million samples": bad_option("smoothgrad", "less than", samples=10**6),
        "one step": bad_option("integrated_gradients", "greater than", steps=1),
        "16,000 samples": bad_params("methods", "of this", {"methods": sixteen}),
        "47,089 windows": BadRequest(
            422,
            "or larger would fit",
            form({"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 1}}]}),
        ),
        "more neighbours than there are": bad_params("options.k", f"use 1..{len(OTHERS)}", {"neighbours": 999}),
    }


KINDS = pictures, wrong_types, neurons, params, methods
