"""``convlens query`` against a live TorchServe, over REST and over gRPC."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from live_server import PHOTOGRAPHS, Live, assert_same_map, photograph
from PIL import Image

from convlens import image
from convlens.cli.main import main
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, Reply

COMMAND = [sys.executable, "-c", "from convlens.cli.main import main; main()", "query"]
CHELSEA, COFFEE = PHOTOGRAPHS / "chelsea.png", PHOTOGRAPHS / "coffee.png"


@pytest.fixture(params=["rest", "grpc"])
def there(request: pytest.FixtureRequest, live: Live) -> list[str]:
    """The options that lead to the server."""
    if request.param == "rest":
        return ["--url", live.server.inference_url]
    return ["--grpc", "--address", live.server.grpc_address]


Query = Callable[..., "subprocess.CompletedProcess[str]"]


def query_process(*arguments: object, token: str = "") -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "CONVLENS_TOKEN": token, "OMP_WAIT_POLICY": "PASSIVE"},
    )


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Query]:
    """The same program in this process, which need not import everything anew: an error of its own would end the test
    where a process would print a traceback.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object, token: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("CONVLENS_TOKEN", token)
        monkeypatch.setattr(sys, "argv", ["convlens", "query", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, out, err)

    yield run
    signal.signal(signal.SIGTERM, on_sigterm)


def test_pictures_become_a_table_a_report_and_the_engine_s_arrays(there: list[str], live: Live, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--methods", "saliency,occlusion", "--set", "occlusion.window=64", "--set", "occlusion.stride=40")
    token = ("--key-file", live.server.key_file)
    done = query_process(CHELSEA, COFFEE, *there, *asked, *token, "--topk", 3, "-o", out)
    assert done.returncode == 0, done.stderr
    for said in ("chelsea.png", "tiger cat", "espresso", "saliency", "occlusion", f"report: {out}/report.html"):
        assert said in done.stdout
    files = ["chelsea", "coffee", "manifest.json", "predictions.csv", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == files
    methods = ["saliency", {"method": "occlusion", "options": {"window": 64, "stride": 40}}]
    (wanted,) = live.engine.run([Request(image.read(COFFEE), parse_params({"methods": methods}))])
    assert isinstance(wanted, Reply)
    for one in wanted.explanations:
        assert isinstance(one.result, Attribution)
        with np.load(out / "coffee" / f"{one.id}.npz") as arrays:
            assert_same_map(arrays["values_NCHW"], one.result.values_NCHW)
        found = np.asarray(Image.open(out / "coffee" / f"{one.id}.overlay.png")).astype(int)
        assert np.abs(found - np.asarray(Image.open(io.BytesIO(one.overlay_png)))).max() <= 1
    assert len(json.loads((out / "coffee" / "reply.json").read_text())["predictions"]) == 3


def test_the_picture_in_the_report_is_what_the_model_saw(
    query: Query, there: list[str], live: Live, tmp_path: Path
) -> None:
    query(COFFEE, *there, "--methods", "saliency", "--key-file", live.server.key_file, "-o", tmp_path / "out")
    seen = image.prepare(image.read(COFFEE), live.engine.model.spec).view_HWC.astype(int)
    shown = np.asarray(Image.open(tmp_path / "out" / "coffee" / "view.png")).astype(int)
    assert shown.shape == seen.shape
    # Resized in one step from the named place, where the model's picture was resized and then cropped.
    assert np.abs(shown - seen).mean() < 1


def test_a_target_the_archive_s_methods_and_the_token_of_the_environment(
    query: Query, there: list[str], live: Live
) -> None:
    done = query(COFFEE, *there, "--target", "cup", token=live.server.token("inference"))
    assert done.returncode == 0, done.stderr
    for method in live.engine.options.default_methods:
        assert method in done.stdout
    assert "cup (" in done.stdout
    assert "report" not in done.stdout


def test_what_fails_is_named_and_the_rest_is_answered(
    query: Query, there: list[str], live: Live, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(photograph()[:999])
    given = (tmp_path / "broken.png", CHELSEA, tmp_path / "absent.png")
    done = query(*given, *there, "--methods", "saliency", "--key-file", live.server.key_file)
    assert done.returncode == 1
    assert "tiger cat" in done.stdout
    assert "broken.png" in done.stderr
    assert "absent.png: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_token_says_where_it_comes_from(query: Query, there: list[str]) -> None:
    done = query(CHELSEA, *there)
    assert done.returncode == 1
    assert "$CONVLENS_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "salency"), "did you mean saliency"),
        (("--set", "occlusion.window=48"), "--methods"),
        (("--topk", "0"), "topk"),
        (("--url", "localhost"), "http://127.0.0.1:8080"),
        (("--grpc", "--address", "http://x"), "HOST:PORT"),
        (("--key-file", "no-such-file"), "no-such-file"),
    ],
)
def test_mistakes_are_reported_in_one_line(query: Query, arguments: tuple[str, ...], said: str) -> None:
    done = query(CHELSEA, *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
