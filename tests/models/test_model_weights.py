"""State dicts: read without running anything, fitted exactly, and fingerprinted."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.models import weights_sha256
from convlens.models.weights import apply_state_dict, read_state_dict

STATE = {"0.weight": torch.arange(12.0).reshape(4, 3), "0.bias": torch.ones(4)}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_a_state_dict_is_read(tmp_path: Path, suffix: str) -> None:
    read = read_state_dict(saved(tmp_path / f"w.{suffix}", STATE))
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["0.weight"], STATE["0.weight"])


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "boom")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, suffix: str, write: Callable[[Any, Path], Any]
) -> None:
    path, target = tmp_path / f"w.{suffix}", tmp_path / "ran"
    write({**STATE, "bomb": Bomb(target)}, path)
    with pytest.raises(ModelError, match=r"holds more than tensors.*save_file"):
        read_state_dict(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert target.read_text() == "boom", "the bomb must be a live one, or the test shows nothing"


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_state_dict(saved(tmp_path / "w.pt", net()))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("w.npz", b"", "should end in one of .safetensors, .pt, .pth, .bin, .th, .tar, .ckpt"),
        ("w.safetensors", b"not one", "not a whole safetensors file"),
        ("w.pt", b"", "w.pt"),
        ("w.pt", b"PK\x03\x04 cut short", "w.pt"),
        ("w.pt", b"\x80garbage", "w.pt"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_state_dict(tmp_path / file)
    assert told in caught.value.message


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"state_dict": STATE}, torch.zeros(3), {**STATE, "a": 1}])
def test_a_file_that_is_not_a_state_dict_alone_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ModelError, match="a state dict"):
        read_state_dict(saved(tmp_path / "w.pt", content))


def test_what_does_not_fit_is_counted_and_named() -> None:
    state = dict(net().state_dict())
    del state["0.bias"]
    state["1.weight"] = torch.ones(5)
    state["extra"] = torch.ones(1)
    with pytest.raises(ModelError) as caught:
        apply_state_dict(net(), state, origin="w.pt")
    for told in ("w.pt", "1 missing (0.bias)", "1 unexpected (extra)", "1.weight (5,) instead of (4,)"):
        assert told in caught.value.message


def test_of_many_that_do_not_fit_only_the_first_few_are_named() -> None:
    with pytest.raises(ModelError, match=r"30 unexpected \(x0, x1, x2, x3, …\)"):
        apply_state_dict(net(), {**net().state_dict(), **{f"x{n}": torch.ones(1) for n in range(30)}}, origin="w.pt")


def test_a_name_that_does_not_fit_is_shown_with_its_nearest_match() -> None:
    state = {key.replace("bias", "biases"): tensor for key, tensor in net().state_dict().items()}
    with pytest.raises(ModelError) as caught:
        apply_state_dict(net(), state, origin="w.pt")
    assert "2 missing (0.bias [nearest: 0.biases], 1.bias [nearest: 1.biases])" in caught.value.message
    assert "0.biases [nearest: 0.bias]" in caught.value.message


def test_another_number_of_classes_is_refused_naming_the_remedy() -> None:
    with pytest.raises(ModelError, match="the file's last layer has 7 outputs: labels=FILE sets how many"):
        apply_state_dict(nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 7)).state_dict(), origin="w.pt")


@pytest.mark.parametrize(
    "weight", [torch.ones(4, 3, dtype=torch.int8), torch.ones(4, 3) * 1j, torch.ones(4, 3).to_sparse()]
)
def test_numbers_that_copying_would_change_are_refused(weight: Tensor) -> None:
    with pytest.raises(ModelError, match=r"of a type that is no real number \(0\.weight"):
        apply_state_dict(net(), {**net().state_dict(), "0.weight": weight}, origin="w.pt")


def test_a_misfit_leaves_the_network_unchanged() -> None:
    module = net()
    before = weights_sha256(module)
    with pytest.raises(ModelError):
        apply_state_dict(module, {"0.weight": torch.zeros(4, 3)}, origin="w.pt")
    assert weights_sha256(module) == before


def test_only_step_counters_may_be_missing() -> None:
    module, other = net(), net()
    state = {key: tensor for key, tensor in other.state_dict().items() if not key.endswith("num_batches_tracked")}
    apply_state_dict(module, state, origin="w.pt")
    assert weights_sha256(module) == weights_sha256(other)


def test_the_fingerprint_is_the_sha256_of_names_types_shapes_and_bytes() -> None:
    module = nn.Linear(2, 1)
    module.load_state_dict({"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([0.5])})
    # By hand: little-endian float32, entries in alphabetical order.
    plain = (
        b"bias\0torch.float32\0(1,)\0\x00\x00\x00\x3f"
        + b"weight\0torch.float32\0(1, 2)\0\x00\x00\x80\x3f\x00\x00\x00\xc0"
    )
    assert weights_sha256(module) == hashlib.sha256(plain).hexdigest()


def test_the_fingerprint_does_not_depend_on_layout_or_order() -> None:
    conv = nn.Conv2d(3, 4, 3)
    strided = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strided.load_state_dict(conv.state_dict())
    assert not strided.weight.is_contiguous()
    assert weights_sha256(strided) == weights_sha256(conv)


@pytest.mark.parametrize("key", ["0.weight", "0.bias", "1.running_var", "1.num_batches_tracked"])
def test_one_bit_changes_the_fingerprint(key: str) -> None:
    module = net()
    before = weights_sha256(module)
    module.state_dict()[key].view(-1).view(torch.uint8)[0] ^= 1
    assert weights_sha256(module) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int64])
def test_every_type_has_a_fingerprint_of_its_own(dtype: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("a", torch.zeros(3, dtype=dtype))
    other = nn.Module()
    other.register_buffer("a", torch.zeros(3))
    assert weights_sha256(module) != weights_sha256(other)
