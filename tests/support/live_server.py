"""A live TorchServe with the default model, and the engine that must give the same answers without a server."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import skimage

from convlens.engine.engine import Engine
from convlens.torchserve.server import Server

# Two entries of one model: QUICK answers a lone request at once, BATCHED waits for others to share its forward pass.
QUICK, BATCHED = "convlens", "batched"
DELAY_MS = 300
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def photograph(name: str = "chelsea.png") -> bytes:
    return (PHOTOGRAPHS / name).read_bytes()


def strict(text: str | bytes) -> Any:
    """JSON as any language's parser takes it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def array(body: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(body["data"]), body["dtype"]).reshape(body["shape"])


def assert_same_map(found: np.ndarray, wanted: np.ndarray) -> None:
    """To 1e-4 of the largest value in float32. A batch adds in another order, and where that moves an activation across
    a ReLU's 0 a few pixels' gradients jump: one in a thousand may, to a hundredth.
    """
    assert found.shape == wanted.shape
    error = np.abs(found - wanted) / np.abs(wanted).max()
    assert np.quantile(error, 0.999) < 1e-4
    assert error.max() < 1e-2


@dataclass(frozen=True)
class Live:
    """``engine`` has the same model, gallery and default methods as the archives."""

    server: Server
    engine: Engine
    gallery: Path
    client: httpx.Client

    def ask(self, path: str, *, method: str = "POST", **sent: Any) -> httpx.Response:
        """Any request with the inference token, as it is."""
        headers = {**self.server.headers("inference"), **sent.pop("headers", {})}
        return self.client.request(method, f"{self.server.inference_url}/{path}", headers=headers, **sent)

    def answer(self, path: str = f"predictions/{QUICK}", *, status: int = 200, **sent: Any) -> Any:
        """The body of the answer, which must be strict JSON, labelled as such, and have this status."""
        got = self.ask(path, **sent)
        assert got.status_code == status, got.text[:500]
        assert got.headers["content-type"] == "application/json"
        body = strict(got.content)
        assert got.status_code == 200 or body["code"] == status
        return body

    def explain(self, params: Any, picture: bytes | None = None, *, status: int = 200, model: str = QUICK) -> Any:
        """By a form, as ``curl -F data=@… -F params=…`` sends it."""
        text = params if isinstance(params, str | bytes) else json.dumps(params)
        form = {"data": ("picture", photograph() if picture is None else picture), "params": (None, text)}
        return self.answer(f"predictions/{model}", status=status, files=form)

    def together(self, *sent: dict[str, Any]) -> list[httpx.Response]:
        """All at once, so that they can share a batch."""
        with ThreadPoolExecutor(len(sent)) as pool:
            return list(pool.map(lambda one: self.ask(**one), sent))

    def pids(self) -> dict[str, list[int]]:
        """The workers' process ids; another one means that a worker died on the way."""
        url, headers = self.server.management_url, self.server.headers("management")
        described = {
            name: self.client.get(f"{url}/models/{name}", headers=headers).json() for name in self.server.models
        }
        return {name: [worker["pid"] for worker in model[0]["workers"]] for name, model in described.items()}
