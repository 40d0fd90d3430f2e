"""Through a live TorchServe: what a new worker answers first, it answers as it will the hundredth time."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from image_files import saved
from live_server import QUICK, Live, photograph
from server_fixtures import running

from convlens import image
from convlens.torchserve.server import Server

SLOWER = 3.0
ROUNDS = 4
WORKERS = 3  # new ones; whatever takes set-up takes it in each, while a busy machine slows only some

# Ten kinds, each for a picture of another size and shape.
KINDS: list[dict[str, Any]] = [
    {},
    {"methods": ["saliency"], "output": ["array"]},
    {"methods": ["guided_backprop"], "output": ["overlay"]},
    {"methods": ["deconvnet"], "reduce": "abs_max"},
    {"methods": ["grad_cam"], "output": ["heatmap"], "target": 5},
    {"methods": [{"method": "smoothgrad", "options": {"samples": 3}}], "seed": 1},
    {"methods": [{"method": "integrated_gradients", "options": {"steps": 3}}]},
    {"methods": [{"method": "occlusion", "options": {"window": 56, "stride": 28}}]},
    {"neighbours": 3},
    {"methods": ["saliency", "guided_backprop"], "output": ["overlay"], "size": "original"},
]
SIDES = [(96, 72), (224, 224), (300, 451), (640, 427), (427, 640)]
SIDES += [(512, 512), (800, 200), (333, 777), (120, 480), (1024, 683)]


def test_none_of_a_new_workers_first_ten_requests_is_refused_or_slow(live: Live, tmp_path: Path) -> None:
    archive = live.gallery.parent / "store" / f"{QUICK}.mar"
    chelsea = image.decode(photograph())
    pictures = [saved(chelsea.resize(size), form) for size, form in zip(SIDES, ["JPEG", "PNG"] * 5, strict=True)]
    asked = list(zip(pictures, map(json.dumps, KINDS), strict=True))
    with running({QUICK: archive}, tmp_path / "run") as server, httpx.Client(timeout=120, trust_env=False) as client:
        firsts = []
        for _ in range(WORKERS):
            replace_worker(server, client)
            firsts.append([seconds(server, client, *each) for each in asked])
        later = [[seconds(server, client, *each) for each in asked] for _ in range(ROUNDS)]
    for kind, params in enumerate(KINDS):
        first, median = min(row[kind] for row in firsts), statistics.median(row[kind] for row in later)
        assert first <= SLOWER * median, f"{params}: {first:.3f} s at first, {median:.3f} s later"


def replace_worker(server: Server, client: httpx.Client) -> None:
    for count in (0, 1):
        scaled = client.put(
            f"{server.management_url}/models/{QUICK}",
            params={"min_worker": count, "max_worker": count, "synchronous": "true"},
            headers=server.headers("management"),
        )
        assert scaled.is_success, scaled.text


def seconds(server: Server, client: httpx.Client, picture: bytes, params: str) -> float:
    started = time.perf_counter()
    got = client.post(
        f"{server.inference_url}/predictions/{QUICK}",
        headers=server.headers("inference"),
        files={"data": ("picture", picture), "params": (None, params)},
    )
    assert got.status_code == 200, got.text[:300]
    return time.perf_counter() - started
