"""A live TorchServe with the default model, and the engine that must give the same answers without a server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import skimage

from convlens.cli.photographs import other_photographs
from convlens.client import BaseClient
from convlens.engine.engine import Engine, EngineOptions
from convlens.gallery import Gallery, build_from
from convlens.models import load, pack
from convlens.torchserve import archive
from convlens.torchserve.archive import entries
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.server import Server

# Entries of one model: QUICK answers a lone request at once, BATCHED waits for others to share its forward pass, and
# APART leaves sweeps to an entry of its own, APART_SWEEP.
QUICK, BATCHED, APART, APART_SWEEP = "convlens", "batched", "apart", "apart_sweep"
DELAY_MS = 300
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
# Makes a client of the server: ``connect(model=…, retries=…)``, with its token unless another source is named.
Connect = Callable[..., BaseClient]


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


def default_archives(folder: Path) -> tuple[dict[str, Path], Engine]:
    """The entries of the default model, and an engine of the same model, gallery and default methods.

    The gallery is left in ``folder / "gallery"``. APART has none, and no limit on what a request may cost, so that
    seconds are what refuses.
    """
    classifier = load("packaged:efficientnet_lite0", device="cpu")
    build_from(list(other_photographs()), folder / "gallery", classifier)
    pack(classifier, folder / "model")
    apart = ArchiveOptions(sweeps_at=APART_SWEEP, section={"max_cost": 1e6})

    def built(name: str, options: ArchiveOptions, gallery: Path | None = folder / "gallery") -> Path:
        model, store = folder / "model", folder / "store"
        return archive.build(name=name, model_dir=model, gallery=gallery, store=store, options=options)

    archives = {
        QUICK: built(QUICK, ArchiveOptions(batch_size=8, max_batch_delay_ms=1)),
        BATCHED: built(BATCHED, ArchiveOptions(batch_size=8, max_batch_delay_ms=DELAY_MS)),
        **entries(built(APART, apart, gallery=None)),
    }
    methods = (*EngineOptions.default_methods, "neighbours")
    options = EngineOptions(default_methods=methods)
    return archives, Engine(classifier, gallery=Gallery.open(folder / "gallery"), options=options)


@dataclass(frozen=True)
class Live:
    """``engine`` has the same model, gallery and default methods as QUICK and BATCHED."""

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
