"""What starting up costs: parts that are not asked for are not loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "faiss",
    "captum",
    "sklearn",
    "jinja2",
    "matplotlib",
    "pyarrow",
    "onnxruntime",
)


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after running the code."""
    script = f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import convlens", "from convlens.cli.main import build; build(['--help'])"])
def test_a_help_text_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code).isdisjoint(HEAVY)


def test_a_serving_worker_loads_no_offline_part() -> None:
    loaded = loaded_by("import handlers.convlens_handler")
    assert "torch" in loaded
    assert loaded.isdisjoint({"faiss", "captum", "onnxruntime", "jinja2", "typer", "rich", "skimage", "matplotlib"})


def test_a_worker_of_graphs_loads_no_network_library() -> None:
    loaded = loaded_by("import handlers.onnx_handler")
    assert "torch" in loaded
    assert loaded.isdisjoint({"torchvision", "timm", "faiss", "captum", "onnx", "jinja2", "typer", "safetensors"})


def test_naming_all_methods_does_not_load_captum() -> None:
    assert loaded_by("import convlens; convlens.methods()").isdisjoint({"captum", "faiss", "matplotlib"})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["explian", "x.jpg"], 2, "explain"),
        (["explain", "no-such.jpg", "-o", "never"], 1, "no-such.jpg"),
        (["models", "torchvision:resnet81"], 2, "resnet18"),
        (["filters", "--model", "resnet50", "-o", "never.png"], 2, "torchvision:resnet50"),
        (["models", "vit_base*"], 2, "no convolutional network matches"),
    ],
)
@pytest.mark.slow
def test_mistakes_get_one_clear_message_and_no_traceback(
    arguments: list[str], code: int, message: str, tmp_path: object
) -> None:
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=str(tmp_path))
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
