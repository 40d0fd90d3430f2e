"""Bodies, forms and headers that must be refused; and all that must be, together."""

from __future__ import annotations

import base64
from typing import Any

from bad_images import WHOLE
from bad_requests import CONTROL, KINDS, BadRequest, body, form

TEXT = base64.b64encode(WHOLE["PNG"]).decode()


def bodies() -> dict[str, BadRequest]:
    """JSON bodies that are none, hold none, or hold rubble."""
    like = 'like {"data": {"b64": "…"}'
    base64_only = "not valid base64"
    return {
        "no JSON": BadRequest(400, like, body(b"{no json")),
        "a hundred thousand brackets": BadRequest(400, like, body(b"[" * 100_000)),
        "a JSON list": BadRequest(422, like, body([1, 2])),
        "a JSON number": BadRequest(400, like, body(5)),
        "JSON without a picture": BadRequest(422, "send it as the body", body({}), field="data"),
        "a picture of null": BadRequest(422, "base64 text", body({"data": None}), field="data"),
        "a picture of numbers": BadRequest(422, "base64 text", body({"data": [137, 80]}), field="data"),
        "base64 of nothing": BadRequest(400, "send a JPEG", body({"data": ""})),
        "base64 rubble": BadRequest(400, base64_only, body({"data": {"b64": "%%%"}}), field="data"),
        "base64 with line breaks": BadRequest(
            400, base64_only, body({"data": TEXT[:76] + "\n" + TEXT[76:]}), field="data"
        ),
        "base64 of other letters": BadRequest(400, base64_only, body({"data": "Ĳ𝟘é"}), field="data"),
        "base64 cut off": BadRequest(400, base64_only, body({"data": TEXT[:-5]}), field="data"),
        "half a picture in base64": BadRequest(400, "send the whole file", body({"data": TEXT[: len(TEXT) // 8 * 4]})),
        "a data: URL": BadRequest(400, base64_only, body({"data": "data:image/png;base64," + TEXT})),
        "an address to fetch": BadRequest(
            422, "base64 text", body({"data": {"url": "http://127.0.0.1/"}}), field="data"
        ),
        "a path to read": BadRequest(400, base64_only, body({"data": "/etc/passwd\x00.png"})),
        "params of a list": BadRequest(422, "a JSON object", body({"data": TEXT, "params": []}), field="params"),
        "an unknown part": BadRequest(
            422, "known parts: data, params", body({"data": TEXT, "image": TEXT}), field="image"
        ),
        "a part of control characters": BadRequest(422, "known parts", body({"data": TEXT, CONTROL: 1})),
        "text": BadRequest(415, "-T cat.jpg", {"content": b"a cat", "headers": {"content-type": "text/plain"}}),
    }


def forms() -> dict[str, BadRequest]:
    data = ("data", ("a.png", WHOLE["PNG"]))
    return {
        "a form without a picture": BadRequest(
            422, "the part 'data'", {"files": {"params": (None, "{}")}}, field="data"
        ),
        "a form of another name": BadRequest(422, "mean data?", {"files": {"dat": ("a", WHOLE["PNG"])}}, field="dat"),
        "a form with a part too many": BadRequest(422, "known parts", {"files": [data, ("extra\r\n", (None, "x"))]}),
        "a form that names headers": BadRequest(
            422, "known parts", {"files": [data, ("url_path", (None, "saliency")), ("explain", (None, "True"))]}
        ),
        "a form of base64": BadRequest(
            400, "base64 text (decode it", {"files": {"data": (None, base64.b64encode(WHOLE["PNG"]))}}
        ),
        "an empty file in a form": BadRequest(400, "send a JPEG", {"files": {"data": ("cat.png", b"")}}),
    }


def headers() -> dict[str, BadRequest]:
    whole = WHOLE["PNG"]
    return {
        "an unknown form of reply": BadRequest(
            406, "application/x-npz", {"content": whole, "headers": {"Accept": "text/html"}}, field="accept"
        ),
        "a form of reply of quality 0": BadRequest(
            406, "image/png", {"content": whole, "headers": {"Accept": "application/json;q=0"}}, field="accept"
        ),
        "a picture of predictions": BadRequest(
            422, "name one method", {"content": whole, "headers": {"Accept": "image/png"}}, field="methods"
        ),
        "a method's name in the path that is none": BadRequest(
            422, "there are: deconvnet", {"content": whole}, "explanations/{}/1.0/occlude"
        ),
        "methods in the path and beside it": BadRequest(
            422, "name them in one place", form({"methods": ["saliency"]}), "explanations/{}/1.0/grad_cam", "methods"
        ),
    }


# --- KServe -----------------------------------------------------------------------------------------------------------


def v1(said: str, **kserve: Any) -> BadRequest:
    return BadRequest(422, said, body(kserve), "v1/models/{}:predict")


def v2(said: str, status: int = 422, params: Any = None, outputs: Any = None, **tensor: Any) -> BadRequest:
    usual = {"name": "data", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    more = {"parameters": params, "outputs": outputs}
    given = {key: value for key, value in more.items() if value is not None}
    return BadRequest(status, said, body({"inputs": [usual | tensor], **given}), "v2/models/{}/infer")


def kserve() -> dict[str, BadRequest]:
    like_v1, like_v2 = 'like {"instances"', 'like {"inputs"'
    return {
        "v1 without instances": v1("at least 1 item", instances=[]),
        "v1 with 17 instances": v1("at most 16 items", instances=[TEXT] * 17),
        "v1 of a number": v1(like_v1, instances=[5]),
        "v1 of null": v1(like_v1, instances=None),
        "v1 of numbers": v1(like_v1, instances=[[[0.1, 0.2]]]),
        "v1 with an unknown key": v1(like_v1, instances=[TEXT], signature_name="x"),
        "v1 of rubble": BadRequest(400, "not valid base64", body({"instances": ["%%%"]}), "v1/models/{}:predict"),
        "v1 with a bad param": v1("less than or equal to 100", instances=[TEXT], params={"topk": 500}),
        "v2 without a tensor": BadRequest(422, like_v2, body({"inputs": []}), "v2/models/{}/infer"),
        "v2 of floats": v2(like_v2, datatype="FP32", data=[0.5]),
        "v2 of another shape": v2("one encoded image an element: [1]", shape=[2, 3]),
        "v2 of a negative shape": v2("one encoded image an element: [1]", shape=[-1]),
        "v2 of numbers": v2(like_v2, data=[1]),
        "v2 of rubble": v2("not valid base64", 400, data=["%%%"]),
        "v2 with a bad param": v2("greater than or equal to 1", params={"topk": 0}),
        "v2 with an unknown output": v2("there are: index, label", outputs=[{"name": "x"}]),
    }


def corpus() -> dict[str, BadRequest]:
    """Everything, by what it is."""
    kinds = *KINDS, bodies, forms, headers, kserve
    return {f"{kind.__name__}: {what}": bad for kind in kinds for what, bad in kind().items()}
