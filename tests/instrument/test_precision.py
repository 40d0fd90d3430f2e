"""What torch multiplies float32 in: said by its flags, set for a pass, put back after it. Flags need no GPU."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch_flags import BACKENDS, fresh_flags

from convlens.errors import ModelError
from convlens.instrument import arithmetic, precision
from convlens.instrument.precision import float32_arithmetic
from convlens.types import ArithmeticPrecision

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_a_gpu_with_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one thing that a machine without a GPU cannot say; and the flags of the test run are left alone."""
    monkeypatch.setattr(precision, "_has_tf32", lambda device: device.type == "cuda")
    with fresh_flags(monkeypatch):
        yield


def only_new_flags() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


WAYS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "cudnn.allow_tf32": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "cuda.matmul.allow_tf32": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "new flags": only_new_flags,
}


def state() -> list[str]:
    """All flags in both of torch's forms; the older one may refuse."""
    newer = [flag.fp32_precision for flags in precision._FLAGS.values() for flag in flags]
    older = (
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    )
    return [*newer, *map(said, older)]


def said(read: Callable[[], Any]) -> str:
    try:
        return str(read())
    except RuntimeError:
        return "refused"


def test_by_default_torch_lets_a_gpu_round_and_a_cpu_not() -> None:
    assert (float32_arithmetic(GPU), float32_arithmetic(CPU)) == ("tf32", "float32")
    torch.set_float32_matmul_precision("medium")
    assert float32_arithmetic(CPU) == "bf16"
    BACKENDS.cudnn.allow_tf32 = False
    assert float32_arithmetic(GPU) == "tf32", "products of matrices may still be rounded"


@pytest.mark.parametrize("device", [GPU, CPU], ids=str)
@pytest.mark.parametrize(("asked", "on_gpu"), [("float32", "float32"), ("half", "float32"), ("tf32", "tf32")])
@pytest.mark.parametrize("way", WAYS)
def test_a_pass_runs_as_asked_and_leaves_every_flag_as_it_was(
    way: str, asked: ArithmeticPrecision, on_gpu: str, device: torch.device
) -> None:
    WAYS[way]()
    before = state()
    with pytest.raises(KeyError), arithmetic(asked, device):
        assert float32_arithmetic(device) == (on_gpu if device == GPU else "float32")
        if device == GPU and asked != "tf32":
            assert {flag.fp32_precision for flag in precision._FLAGS["cuda"]} <= {"none", "ieee"}
        raise KeyError
    assert state() == before


def test_what_followed_torch_s_flag_for_all_follows_it_still() -> None:
    BACKENDS.fp32_precision = "tf32"
    with arithmetic("float32", GPU):
        assert BACKENDS.cuda.matmul.fp32_precision == "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "tf32"
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "ieee"


def test_passes_in_two_precisions_take_turns_and_never_see_each_other_s() -> None:
    wrong: list[str] = []

    def work(asked: ArithmeticPrecision | None, expected: str) -> None:
        for _ in range(300):
            with arithmetic(asked, GPU):
                seen = {float32_arithmetic(GPU) for _ in range(5)}
            wrong.extend(seen - {expected})

    BACKENDS.cudnn.allow_tf32 = False
    kinds = [("float32", "float32"), ("tf32", "tf32"), (None, "float32")] * 2
    threads = [threading.Thread(target=work, args=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_passes_in_one_precision_run_together() -> None:
    both = threading.Barrier(2, timeout=10)

    def work() -> None:
        with arithmetic("float32", GPU):
            both.wait()  # broken if the other one had to wait outside

    thread = threading.Thread(target=work)
    thread.start()
    work()
    thread.join(10)


def test_a_pass_inside_a_pass_joins_it_or_is_refused() -> None:
    with arithmetic("float32", GPU):
        with arithmetic("half", GPU), arithmetic(None, GPU):
            assert float32_arithmetic(GPU) == "float32"
        assert float32_arithmetic(GPU) == "float32", "the outer one goes on"
        with pytest.raises(ModelError, match="a pass in tf32 was begun inside one in float32"), arithmetic("tf32", GPU):
            pass
    assert float32_arithmetic(GPU) == "tf32"


@pytest.mark.parametrize("way", WAYS)
def test_a_process_of_ours_is_strict_whatever_was_set_before(way: str) -> None:
    WAYS[way]()
    precision.use_precision("float32")
    assert (float32_arithmetic(GPU), float32_arithmetic(CPU)) == ("float32", "float32")
    assert "refused" not in state(), "torch's older flags can still be read"
    precision.use_precision("tf32")
    assert (float32_arithmetic(GPU), float32_arithmetic(CPU)) == ("tf32", "float32")


def test_a_name_that_is_no_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match="no precision 'fp32'; there are: float32, tf32, half"):
        precision.use_precision("fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "expected"), [([], "float32"), (["--precision", "tf32"], "tf32")])
def test_commands_are_strict_unless_told_otherwise(arguments: list[str], expected: str) -> None:
    # A folder that does not exist ends the command as soon as its options are read.
    script = """
import sys
from convlens.cli.main import main
sys.argv[1:] = ["gallery", "build", "no-such-folder", "-o", "never", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    from convlens.instrument import precision
    import torch
    precision._has_tf32 = lambda device: True
    print(ended.code, precision.float32_arithmetic(torch.device("cuda")))
"""
    run = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["2", expected]
