"""What ``convlens explain`` says of a network that cannot do all that was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage
from typer.testing import CliRunner, Result

from convlens.cli.main import build

PHOTOGRAPH = Path(skimage.__file__).parent / "data" / "chelsea.png"
NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.silu(self.second(nn.functional.silu(self.first(x))))
        return self.head(x.mean((2, 3)))

class Faulty(Net):
    def forward(self, x):
        if x.requires_grad:
            raise ZeroDivisionError("no gradient today")
        return super().forward(x)
"""


def explain(folder: Path, factory: str, *arguments: str) -> Result:
    path = folder / "networks.py"
    path.write_text(NETWORKS)
    given = ["explain", str(PHOTOGRAPH), "--model", f"file:{path}:{factory}?size=32", "--no-accelerate"]
    given += ["--device", "cpu", "-o", str(folder / "out"), *arguments]
    return CliRunner().invoke(build(given), given)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 0), (("--methods", "saliency,guided_backprop"), 1)],
    ids=["default methods", "methods that were named"],
)
def test_a_method_that_the_network_cannot_do_is_named_with_the_reason(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    settings = () if arguments else ("--set", "occlusion.window=16", "--set", "occlusion.stride=16")
    result = explain(tmp_path, "Net", *arguments, *settings)
    assert result.exit_code == code, result.output
    assert "guided_backprop is left out: guided_backprop is defined for ReLU networks only" in result.output
    assert (tmp_path / "out" / "chelsea" / "saliency.npz").is_file()
    assert "guided_backprop is left out" in (tmp_path / "out" / "report.html").read_text()


def test_an_exception_of_the_networks_own_is_told_in_one_sentence(tmp_path: Path) -> None:
    result = explain(tmp_path, "Faulty", "--methods", "saliency")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "not explained" in line]
    assert line.endswith("internal error: ZeroDivisionError: no gradient today (in forward, networks.py:18)")
    assert "Traceback" not in result.output
    assert "server's log" not in result.output
