"""``convlens features`` as a user meets it: real model, real images, real files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from typer.testing import CliRunner, Result

import convlens
from convlens import image
from convlens.cli.main import build
from convlens.errors import ModelError, RequestError
from convlens.runtime.torch_runtime import TorchRuntime

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from convlens.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=200)


def in_process(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(build(given), given, env={"COLUMNS": "200"})


@pytest.mark.slow
def test_features_of_a_list_are_those_of_the_model(tmp_path: Path) -> None:
    names = ["rocket.jpg", "chelsea.png", "lost.jpg", "coffee.png"]
    (tmp_path / "list.txt").write_text("".join(f"{PHOTOGRAPHS / name}\n" for name in names))
    done = command("features", tmp_path / "list.txt", "-o", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "3 × 1280 features in" in done.stdout
    assert "lost.jpg: cannot be read (No such file or directory)" in done.stderr
    assert "4/4" in done.stderr
    assert "images/s" in done.stderr
    net = convlens.load(device="cpu")
    runtime = TorchRuntime(net.module, net.spec.embedding_layer, net.device)
    expected = [
        runtime.logits_and_embeddings(image.prepare(image.read(PHOTOGRAPHS / name), net.spec).x_CHW[None])[1][0]
        for name in names
        if name != "lost.jpg"
    ]
    found = np.load(tmp_path / "out" / "features.npy")
    # float32 sums in another order
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    again = in_process("features", tmp_path / "list.txt", "-o", tmp_path / "out", "--device", "cpu")
    assert isinstance(again.exception, RequestError)
    assert "is finished already" in again.exception.message


def test_no_images_is_noticed_before_a_model_is_loaded(tmp_path: Path) -> None:
    found = in_process("features", tmp_path, "-o", tmp_path / "out", "--model", "no such model")
    assert isinstance(found.exception, RequestError)
    assert "no images in" in found.exception.message


def test_a_graph_that_is_none_is_an_error_and_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    options = ("--graph", tmp_path / "graph.onnx", "--device", "cpu")
    found = in_process("features", PHOTOGRAPHS, "-o", tmp_path / "out", *options)
    assert isinstance(found.exception, ModelError)
    assert not (tmp_path / "out").exists()


def test_the_how_to_s_lines_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "features.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "rocket.jpg").write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "features.md", "exec"), {"__name__": "how_to"})
    assert np.load("features/features.npy").shape == (1, 1280)
    for line in re.findall(r"^convlens (?:features|gallery) .*$", text, flags=re.MULTILINE):
        _, command, *arguments = line.split()
        said = in_process(command, *arguments[:1], "--help").output
        assert all(argument in said for argument in arguments if argument.startswith("-")), line
