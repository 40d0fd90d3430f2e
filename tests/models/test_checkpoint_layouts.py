"""Checkpoints as training scripts write them: each loads with the right logits, or is refused with the remedy."""

from __future__ import annotations

import argparse
import builtins
import collections
import copy
import datetime
import inspect
import json
import logging
import os
import pickle
import re
import types
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convlens.errors import ModelError
from convlens.models import load
from convlens.models.checkpoints import load_weights
from convlens.models.weight_files import read_weights_file

State = dict[str, Tensor]


class Net(nn.Module):
    """A small network whose names are like ResNet's: a stem, a stage, a head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.layer1(self.bn1(self.conv1(x_NCHW)).relu()).relu().mean((2, 3)))


def net(seed: int, classes: int = 5) -> Net:
    """A network in eval mode whose every tensor is random, running statistics too."""
    generator = torch.Generator().manual_seed(seed)
    module = Net(classes).eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (1 if "var" in name else 0.5) + 0.1)
    return module


X_NCHW = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(9))
TRAINED, OTHER = net(1), net(2)


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(X_NCHW)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def optimised(module: Net) -> torch.optim.Optimizer:
    """An optimiser with state: one step of Adam on a copy."""
    twin = copy.deepcopy(module)
    optimiser = torch.optim.AdamW(twin.parameters())
    twin(X_NCHW).sum().backward()
    optimiser.step()
    return optimiser


def scheduler() -> dict[str, Any]:
    return torch.optim.lr_scheduler.MultiStepLR(optimised(OTHER), [2, 4]).state_dict()


def averaged(module: Net) -> AveragedModel:
    """SWA's running mean of one network, which is that network."""
    mean = AveragedModel(OTHER)
    mean.update_parameters(module)
    mean.module.load_state_dict(module.state_dict())  # its buffers too
    return mean


def timm_ema(module: Net) -> ModelEmaV3:
    return ModelEmaV3(module, decay=0.9)


def lightning(state: State, **more: object) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [optimised(OTHER).state_dict()],
        "lr_schedulers": [scheduler()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "path": Path("runs/1")},
        **more,
    }


def args() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1, data=Path("data"), aug=None, sizes=[224, 256])


def compiled(module: nn.Module) -> State:
    return torch.compile(module).state_dict()  # names only: nothing is compiled before the first call


S, T = TRAINED.state_dict(), OTHER.state_dict()

# What training scripts give to torch.save: each holds TRAINED's weights, and where there is a choice OTHER's beside.
LAYOUTS: dict[str, Callable[[], Any]] = {
    "plain": lambda: S,
    "state_dict of the ImageNet example": lambda: {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": under("module.", S),
        "best_acc1": torch.tensor(70.1),
        "optimizer": optimised(OTHER).state_dict(),
        "scheduler": scheduler(),
    },
    "DataParallel": lambda: nn.DataParallel(TRAINED).state_dict(),
    "DataParallel of a compiled network": lambda: under("module._orig_mod.", S),
    "torch.compile": lambda: compiled(TRAINED),
    "torch.compile of DataParallel": lambda: compiled(nn.DataParallel(TRAINED)),
    "model": lambda: {"model": S},
    "model_state_dict of PyTorch's tutorial": lambda: {
        "epoch": 5,
        "model_state_dict": S,
        "optimizer_state_dict": optimised(OTHER).state_dict(),
        "loss": 0.4,
    },
    "model_state": lambda: {"model_state": S, "lr": 0.1},
    "net of kuangliu's CIFAR script": lambda: {"net": under("module.", S), "acc": 93.1, "epoch": 7},
    "network": lambda: {"network": S},
    "weights": lambda: {"weights": S, "classes": ["a", "b"]},
    "module of DeepSpeed": lambda: {"module": S, "dp_world_size": 1, "ds_config": {"bf16": {"enabled": True}}},
    "params": lambda: {"params": S},
    "params_ema alone": lambda: {"params_ema": S},
    "params beside params_ema of BasicSR": lambda: {"params_ema": T, "params": S},
    "nested state.model": lambda: {"state": {"model": S, "optimizers": [optimised(OTHER).state_dict()]}, "rng": None},
    "three deep": lambda: {"checkpoint": {"trainer": {"model": under("module.", S)}}},
    "a list of state dicts": lambda: [S, optimised(OTHER).state_dict()],
    "fastai with optimiser": lambda: {"model": S, "opt": optimised(OTHER).state_dict()},
    "timm train script": lambda: {
        "epoch": 9,
        "arch": "net",
        "state_dict": S,
        "optimizer": optimised(OTHER).state_dict(),
        "version": 2,
        "args": args(),
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": T,
        "metric": np.float64(71.2),
    },
    "timm ModelEma alone": lambda: {"state_dict_ema": timm_ema(TRAINED).module.state_dict()},
    "timm ModelEma's own state dict": lambda: timm_ema(TRAINED).state_dict(),
    "torchvision references": lambda: {
        "model": S,
        "optimizer": optimised(OTHER).state_dict(),
        "lr_scheduler": scheduler(),
        "epoch": 4,
        "args": args(),
        "model_ema": averaged(OTHER).state_dict(),
        "scaler": {"scale": 1.0},
    },
    "torchvision's model_ema alone": lambda: {"model_ema": averaged(TRAINED).state_dict()},
    "SWA": lambda: averaged(TRAINED).state_dict(),
    "SWA of DataParallel": lambda: under("module.", averaged(TRAINED).state_dict()),
    "Lightning": lambda: lightning(under("model.", S)),
    "Lightning of net with a weighted loss": lambda: lightning(
        {**under("net.", S), "criterion.weight": torch.rand(5), "val_acc.total": torch.tensor(8)}
    ),
    "Lightning with the mean beside": lambda: lightning({**under("ema_model.", T), **under("model.", S)}),
    "Lightning with LitEma": lambda: lightning(
        {
            **under("model.", S),
            **{f"model_ema.{name.replace('.', '')}": tensor for name, tensor in T.items()},
            "model_ema.decay": torch.tensor(0.99),
            "model_ema.num_updates": torch.tensor(3),
        }
    ),
    "Lightning of a compiled network": lambda: lightning(under("model._orig_mod.", S)),
    "MMPretrain with backbone. and head.": lambda: {
        "meta": {"epoch": 100, "time": datetime.datetime(2024, 1, 2), "classes": ("a", "b")},
        "state_dict": {
            **{f"head.{name}" if name.startswith("fc.") else f"backbone.{name}": each for name, each in S.items()}
        },
    },
    "detectron's wrapper": lambda: {"model": under("backbone.", S), "__author__": "x", "matching_heuristics": True},
    "MoCo's query alone": lambda: {"state_dict": under("module.encoder_q.", S), "arch": "net"},
    "without counters of batch norm": lambda: {k: v for k, v in S.items() if not k.endswith("num_batches_tracked")},
    "values beside the tensors": lambda: {**S, "epoch": 3, "best_acc": np.float32(0.9), "name": "net"},
    "numpy arrays and types": lambda: {
        "model": S,
        "history": np.arange(4.0),
        "rng": np.random.RandomState(0).get_state(),
        "dtype": np.float32,
        "best": np.int64(3),
        "flag": np.bool_(True),
    },
    "defaultdict, deque, path, date": lambda: {
        "model": collections.defaultdict(list, S),
        "losses": collections.deque([0.1, 0.2], maxlen=5),
        "log": collections.defaultdict(int, {"a": 1}),
        "paths": [Path("a/b"), datetime.timedelta(seconds=3), datetime.date(2024, 1, 2)],
        "config": types.SimpleNamespace(a=1),
        "rates": frozenset({1, 2}),
        "order": collections.OrderedDict(a=1),
    },
    "bfloat16": lambda: {"model": {k: v.bfloat16() if v.is_floating_point() else v for k, v in HALVED.items()}},
    "float64": lambda: {"model": {k: v.double() if v.is_floating_point() else v for k, v in S.items()}},
    "parameters": lambda: dict(TRAINED.named_parameters()) | dict(TRAINED.named_buffers()),
    "two names for one state dict": lambda: {"state_dict": S, "model": S},
}
# Weights that bfloat16 holds exactly.
HALVED = {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in S.items()}


@pytest.mark.parametrize("suffix", ["pt", "pth.tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_loads_with_the_logits_of_the_network_that_was_saved(tmp_path: Path, layout: str, suffix: str) -> None:
    path, module = tmp_path / f"w.{suffix}", net(3)
    torch.save(LAYOUTS[layout](), path)
    load_weights(module, path)
    expected = net(3)
    expected.load_state_dict(HALVED if layout == "bfloat16" else S)
    torch.testing.assert_close(logits(module), logits(expected), rtol=0, atol=0)
    assert not torch.equal(logits(module), logits(OTHER))


@pytest.mark.parametrize("suffix", ["ckpt", "bin", "th", "pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_are_read_under_every_suffix(tmp_path: Path, suffix: str, zipped: bool) -> None:
    module = net(3)
    content = {"state_dict": S, "args": args(), "best": np.float64(1)}
    torch.save(content, tmp_path / f"w.{suffix}", _use_new_zipfile_serialization=zipped)
    load_weights(module, tmp_path / f"w.{suffix}")
    assert torch.equal(logits(module), logits(TRAINED))


def contiguous(state: State) -> State:
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "timm_model."])
def test_safetensors_load_with_their_prefix_dropped(tmp_path: Path, prefix: str) -> None:
    module = net(3)
    save_file(contiguous(under(prefix, S)), tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_weights(module, tmp_path / "model.safetensors")
    assert torch.equal(logits(module), logits(TRAINED))


def sharded(folder: Path) -> Path:
    """A Hugging Face index of two shards."""
    names = list(S)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file(contiguous({name: S[name] for name in names if places[name] == file}), folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_the_index_of_shards_loads_them_all(tmp_path: Path) -> None:
    module = net(3)
    load_weights(module, sharded(tmp_path))
    assert torch.equal(logits(module), logits(TRAINED))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights file .*model-00002-of-00002"):
        load_weights(net(3), index)


def test_one_shard_alone_is_refused_naming_the_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    with pytest.raises(ModelError, match=r"one of several shards: give the \.index\.json"):
        load_weights(net(3), tmp_path / "model-00001-of-00002.safetensors")


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv1.weight": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="in the same folder"):
        load_weights(net(3), index)


# Where several state dicts fit.


@pytest.mark.parametrize(
    ("key", "expected"), [(None, TRAINED), ("model", TRAINED), ("model_ema", OTHER), ("model_ema.module", OTHER)]
)
def test_the_plain_network_is_taken_before_its_mean_unless_a_key_chooses(
    tmp_path: Path, key: str | None, expected: Net
) -> None:
    module = net(3)
    torch.save({"model_ema": averaged(OTHER).state_dict(), "model": S}, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt", key=key)
    assert torch.equal(logits(module), logits(expected))


def test_a_choice_is_said_in_the_log_with_the_other_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model_ema": averaged(OTHER).state_dict(), "model": S}, tmp_path / "w.pt")
    load_weights(net(3), tmp_path / "w.pt")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "took model; model_ema.module fits as well, and weights_key=model_ema.module" in record.getMessage()


def test_a_dropped_prefix_and_what_is_left_out_are_said_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.save({"state_dict": {**under("module.", S), "criterion.weight": torch.ones(5)}}, tmp_path / "w.pt")
    load_weights(net(3), tmp_path / "w.pt")
    assert "the weights lie under state_dict.module" in caplog.text
    assert "left out criterion.weight" in caplog.text


def test_a_plain_file_says_nothing_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch.save(S, tmp_path / "w.pt")
    load_weights(net(3), tmp_path / "w.pt")
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"student": S, "teacher": T}, "student, teacher"),
        ({"state_dict": S, "model": T}, "state_dict, model"),
        ({"state_dict": {**under("student.", S), **under("teacher.", T)}}, "state_dict.student, state_dict.teacher"),
        ([S, T], "0, 1"),
    ],
)
def test_two_networks_that_fit_are_refused_naming_the_choice(tmp_path: Path, content: object, keys: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=f"{keys}; choose one with weights_key={keys.split(',')[0]}"):
        load_weights(net(3), tmp_path / "w.pt")


@pytest.mark.parametrize("key", ["state_dict.teacher", "teacher", "teacher."])
def test_a_key_chooses_a_prefix(tmp_path: Path, key: str) -> None:
    module = net(3)
    torch.save({"state_dict": {**under("student.", S), **under("teacher.", T)}}, tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt", key=key)
    assert torch.equal(logits(module), logits(OTHER))


def test_an_unknown_key_is_refused_with_those_there_are(tmp_path: Path) -> None:
    torch.save({"model": under("module.", S), "model_ema": T}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"no weights_key 'ema'.*there are: model, model.module, model_ema"):
        load_weights(net(3), tmp_path / "w.pt", key="ema")


# What does not fit.

WIDER = net(4, classes=7).state_dict()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": under("module.", WIDER)}, ("fc.weight (7, 6) instead of (5, 6)", "7 outputs", "labels=FILE")),
        ({**S, "layer2.weight": torch.ones(1)}, ("1 unexpected (layer2.weight)",)),
        ({k: v for k, v in S.items() if k != "bn1.bias"}, ("1 missing (bn1.bias)",)),
        ({k: v for k, v in S.items() if k != "fc.bias"}, ("1 missing (fc.bias); name the network",)),
        (
            {k.replace("layer1.0", "layers1.0"): v for k, v in S.items()},
            ("2 missing", "layer1.0.weight [nearest: layers1.0.weight]", "rename"),
        ),
        (under("backbone.", {k: v for k, v in S.items() if "fc" not in k}), ("2 missing (fc.", "has no last layer")),
        ({"features.0.weight": torch.ones(3, 3)}, ("only 0 of the network's 13", "another architecture")),
        ({"arch": "vgg11", "state_dict": {"a.weight": torch.ones(3)}}, ("names its architecture 'vgg11'",)),
        (
            {**under("backbone.", S), "neck.weight": torch.ones(6, 6)},
            ("neck.weight", "weights_key=backbone takes that part alone"),
        ),
        ({**S, "ema.conv.weight": torch.ones(6)}, ("1 unexpected (ema.conv.weight)",)),
        ({**S, "1.conv1.weight": S["conv1.weight"]}, ("1 unexpected (1.conv1.weight)",)),
        ({**S, **under("head.", S)}, ("unexpected (head.conv1.weight",)),
        ({k: v.numpy() if k == "conv1.weight" else v for k, v in S.items()}, ("conv1.weight is a _reconstruct",)),
        ({k: v.to(torch.int8) if k == "conv1.weight" else v for k, v in S.items()}, ("conv1.weight torch.int8",)),
        ({k: v + 0j if k == "fc.weight" else v for k, v in S.items()}, ("fc.weight torch.complex64",)),
        ({k: v.to_sparse() if k == "fc.weight" else v for k, v in S.items()}, ("type that is no real number",)),
        ({k: v.to("meta") if k == "fc.weight" else v for k, v in S.items()}, ("type that is no real number",)),
        (optimised(OTHER).state_dict(), ("holds no state dict", "'state'", "'param_groups'")),
        ({"optimizer": {"exp_avg": S}}, ("holds no state dict", "'optimizer' (a dict)")),
        ({"epoch": 3}, ("holds no state dict", "'epoch' (a int)")),
        (torch.ones(3), ("holds no state dict", "a Tensor")),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(tmp_path: Path, content: object, told: tuple[str, ...]) -> None:
    torch.save(content, tmp_path / "w.pt")
    module = net(3)
    with pytest.raises(ModelError) as caught:
        load_weights(module, tmp_path / "w.pt")
    for part in told:
        assert part in caught.value.message
    assert torch.equal(logits(module), logits(net(3))), "a refused file leaves the network as it was"


def test_weights_for_a_network_without_any_are_refused(tmp_path: Path) -> None:
    torch.save(S, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"unexpected \(conv1\.weight"):
        load_weights(nn.Sequential(nn.ReLU()), tmp_path / "w.pt")


# Files of other kinds.


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)


def onnx_graph(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, w=np.ones(3))


def cut_short(path: Path) -> None:
    torch.save(S, path)
    path.write_bytes(path.read_bytes()[:-200])


def cut_short_legacy(path: Path) -> None:
    torch.save(S, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-200])


def cut_short_safetensors(path: Path) -> None:
    save_file(contiguous(S), path)
    path.write_bytes(path.read_bytes()[:-20])


def whole(path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), path)


def whole_in_a_dict(path: Path) -> None:
    torch.save({"model": TRAINED, "epoch": 3}, path)


def any_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")


def protocol_4(path: Path) -> None:
    torch.save(S, path, pickle_protocol=4)


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["pt", "ckpt"])
@pytest.mark.parametrize(
    ("write", "told", "remedy"),
    [
        (scripted, "a TorchScript archive", "torch.jit.load"),
        (exported, "a program of torch.export", "torch.export.load"),
        (onnx_graph, "an ONNX graph", "the PyTorch weights"),
        (arrays, "a NumPy .npz archive", "safetensors.numpy.save_file"),
        (text(b"\x89HDF\r\n\x1a\n\0\0\0\0"), "an HDF5 file", "state_dict()"),
        (text(b""), "is empty", "download it again"),
        (
            text(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
            "Git LFS pointer",
            "git lfs pull",
        ),
        (text(b"\n<!DOCTYPE html>\n<html><body>404</body></html>"), "a web page", "`resolve` link"),
        (text(b'{"error": "Invalid token"}'), 'text, beginning \'{"error"', "download the file itself"),
        (text(b"Entry not found"), "text, beginning 'Entry not found'", "download the file itself"),
        (text(b"\x1f\x8b\x08\0\0\0\0\0"), "gzip-compressed", "gunzip"),
        (text(b"\x80garbage"), "w.", "again"),
        (cut_short, "cut short or damaged", "download it again"),
        (cut_short_legacy, "cannot be read", "download it again"),
        (cut_short_safetensors, "not a whole safetensors file", "download it again"),
        (any_zip, "a zip archive (of notes.txt)", "unpack it"),
        (protocol_4, "a protocol that torch does not read", "torch.save(model.state_dict()"),
        (whole, "a whole pickled network (torch.nn.modules.", "model being torch.load('w."),
        (whole_in_a_dict, "a whole pickled network", "or the entry of it that is the network"),
    ],
)
def test_a_file_of_another_kind_is_refused_saying_what_it_is_and_what_to_do(
    tmp_path: Path, suffix: str, write: Callable[[Path], object], told: str, remedy: str
) -> None:
    path = tmp_path / f"w.{suffix}"
    write(path)
    with pytest.raises(ModelError) as caught:
        load_weights(net(3), path)
    assert told in caught.value.message
    assert remedy in caught.value.message


def test_a_folder_is_refused_naming_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a folder; give one file in it \(config\.json\)"):
        load_weights(net(3), tmp_path)


# Nothing of a file runs.


class Bomb:
    """Unpickled, it calls a function with one argument."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def bombs(target: Path) -> list[Bomb]:
    return [Bomb(os.system, f"touch {target}"), Bomb(builtins.eval, f"open({str(target)!r}, 'w')")]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "place",
    [
        lambda bomb: {**S, "epoch": bomb},
        lambda bomb: {"state_dict": S, "args": bomb},
        lambda bomb: {"state_dict": under("module.", S), "args": argparse.Namespace(hook=bomb)},
        lambda bomb: {"model": collections.defaultdict(list, {**S, "x": bomb})},
        lambda bomb: {"model": S, "optimizer": {"state": {0: bomb}}},
        lambda bomb: {"model": S, "model_ema": {"n_averaged": bomb}},
        lambda bomb: lightning(under("model.", S), hyper_parameters={"f": bomb}),
        lambda bomb: {"model": S, "log": collections.deque([bomb])},
        lambda bomb: {"model": S, "best": np.array([bomb], dtype=object)},
        lambda bomb: [S, bomb],
        lambda bomb: bomb,
    ],
)
def test_code_in_a_checkpoint_never_runs_and_is_refused_by_name(
    tmp_path: Path, place: Callable[[Bomb], object], zipped: bool, which: int
) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "ran"
    torch.save(place(bombs(target)[which]), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"holds more than tensors.*\((posix\.system|builtins\.eval|eval)"):
        load_weights(net(3), path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the bomb must be a live one, or the test shows nothing"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_never_runs(tmp_path: Path, protocol: int) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"w": 1.5, "x": bombs(target)[0]}, protocol=protocol))
    with pytest.raises(ModelError):
        load_weights(net(3), path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists(), "the bomb must be a live one, or the test shows nothing"


def test_what_stands_for_objects_of_a_file_keeps_nothing_of_them(tmp_path: Path) -> None:
    torch.save({"args": args(), "path": Path("a"), "best": np.float64(3)}, tmp_path / "w.pt")
    content = read_weights_file(tmp_path / "w.pt")
    assert [type(value).__name__ for value in content.values()] == ["Namespace", "PosixPath", "scalar"]
    assert not any(isinstance(value, argparse.Namespace | Path | np.generic) for value in content.values())
    assert not any(hasattr(value, "lr") for value in content.values())


def test_reading_leaves_torch_list_of_safe_classes_as_it_was(tmp_path: Path) -> None:
    torch.save({"model": S, "args": args()}, tmp_path / "w.pt")
    before = set(torch.serialization.get_safe_globals())
    load_weights(net(3), tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_threads_read_at_once(tmp_path: Path) -> None:
    torch.save({"model": S, "args": args(), "metric": np.float64(1)}, tmp_path / "w.pt")
    modules = [net(3) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda module: load_weights(module, tmp_path / "w.pt"), modules))
    assert all(torch.equal(logits(module), logits(TRAINED)) for module in modules)


# By name, as users give them.


def seeded_twin(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    module = make().eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean"):
            tensor.uniform_(-0.1, 0.1)
    return module


def test_a_timm_checkpoint_loads_by_name_with_its_labels(tmp_path: Path) -> None:
    twin = seeded_twin(lambda: timm.create_model("test_resnet", num_classes=3))
    checkpoint = {"arch": "test_resnet", "state_dict": under("module.", twin.state_dict()), "args": args()}
    torch.save(checkpoint, tmp_path / "model_best.pth.tar")
    (tmp_path / "names.json").write_text('{"0": "cat", "1": "dog", "2": "emu"}')
    name = f"timm:test_resnet?weights={tmp_path}/model_best.pth.tar&labels={tmp_path}/names.json"
    classifier = load(name, device="cpu")
    x_NCHW = torch.rand(2, 3, classifier.spec.crop, classifier.spec.crop)
    with torch.no_grad():
        torch.testing.assert_close(classifier.module(x_NCHW), twin(x_NCHW), rtol=1e-5, atol=1e-5)  # another layout
    assert classifier.spec.labels == ("cat", "dog", "emu")
    with pytest.raises(ModelError, match="last layer has 3 outputs: labels=FILE"):
        load(name.partition("&")[0], device="cpu")


def old_densenet(name: str) -> str:
    """A name as torchvision's published checkpoints of DenseNet have it: ``denselayer1.norm.1.weight``."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name)


@pytest.mark.parametrize(
    ("model", "options", "rename"),
    [
        ("densenet121", {}, old_densenet),
        ("googlenet", {"aux_logits": True, "init_weights": False}, str),
    ],
)
def test_torchvision_networks_load_by_name_with_their_old_names_and_training_heads(
    tmp_path: Path, model: str, options: dict[str, bool], rename: Callable[[str], str]
) -> None:
    twin = seeded_twin(lambda: torchvision.models.get_model(model, weights=None, num_classes=3, **options))
    torch.save({"model": under("module.", {rename(k): v for k, v in twin.state_dict().items()})}, tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    name = f"torchvision:{model}?weights={tmp_path}/w.pth&labels={tmp_path}/names.txt&size=64&resize=64"
    loaded = load(name, device="cpu").module.state_dict()
    theirs = {name: tensor for name, tensor in twin.state_dict().items() if name in loaded}
    assert loaded.keys() == theirs.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in theirs.items())


def test_the_mean_is_chosen_in_the_name(tmp_path: Path) -> None:
    code = f"from torch import nn\n\n\n{inspect.getsource(Net).replace('Tensor', 'object')}"
    (tmp_path / "net.py").write_text(code)
    torch.save({"model": S, "model_ema": averaged(OTHER).state_dict()}, tmp_path / "w.pt")
    name = f"file:{tmp_path}/net.py:Net?weights={tmp_path}/w.pt&size=8&resize=8"
    for key, expected in (("", TRAINED), ("&weights_key=model_ema", OTHER)):
        module = load(name + key, device="cpu").module
        torch.testing.assert_close(logits(module), logits(expected))


def test_a_key_without_a_file_is_refused() -> None:
    with pytest.raises(ModelError, match="give weights=FILE as well"):
        load("timm:test_resnet:untrained?weights_key=model", device="cpu")
