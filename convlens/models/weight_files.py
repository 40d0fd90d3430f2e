"""Weights files: what kind a file is, and what it holds, read without running anything of it."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from convlens.errors import ModelError

SAFETENSORS = ".safetensors"
_PICKLED = (".pt", ".pth", ".bin", ".th", ".tar", ".ckpt")  # .tar for .pth.tar, which is no tar archive
_SUFFIXES = (SAFETENSORS, *_PICKLED)
_INDEX = ".index.json"  # Hugging Face's list of shards
_HEAD = 512  # bytes; a tar archive names itself at 257
_AGAIN = "copy or download it again"
_EXPORT = "in the program that made it, save the network's state_dict() with torch.save"

# Where a file of another kind names itself: (offset, bytes, what it is, what to do).
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, which stands for the real file", "run `git lfs pull`"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras and TensorFlow write them", f"convert it to PyTorch, then {_EXPORT}"),
    (0, b"\x93NUMPY", "a NumPy array", "write all tensors by name with safetensors.numpy.save_file"),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it with gunzip or tar -xzf and give the file inside"),
    (0, b"BZh", "bzip2-compressed", "unpack it with bunzip2 or tar -xjf and give the file inside"),
    (0, b"\xfd7zXZ\0", "xz-compressed", "unpack it with unxz or tar -xJf and give the file inside"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it and give the file inside"),
    (0, b"Rar!", "a RAR archive", "unpack it and give the file inside"),
    (257, b"ustar", "a tar archive", "unpack it with tar -xf and give the file inside"),
    (4, b"TFL3", "a TensorFlow Lite model", "give the weights as PyTorch has them"),
    (0, b"GGUF", "a GGUF file", "give the weights as PyTorch has them"),
)
# An ONNX model begins with its IR version (field 1), followed by its producer (2), graph (7) or opset (8).
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]")
_BY_SUFFIX: Mapping[str, tuple[str, str]] = {
    ".onnx": ("an ONNX graph", "give the PyTorch weights it was exported from; a graph has no gradients to explain by"),
    ".pb": ("a TensorFlow graph", f"convert it to PyTorch, then {_EXPORT}"),
    ".h5": ("a Keras file", f"convert it to PyTorch, then {_EXPORT}"),
    ".hdf5": ("a Keras file", f"convert it to PyTorch, then {_EXPORT}"),
    ".keras": ("a Keras file", f"convert it to PyTorch, then {_EXPORT}"),
    ".index": ("the index of a TensorFlow checkpoint", f"convert it to PyTorch, then {_EXPORT}"),
    ".msgpack": ("Flax weights", f"convert them to PyTorch, then {_EXPORT}"),
    ".pkl": ("a pickle, which could run any code when read", f"where you trust it, {_EXPORT}"),
    ".pickle": ("a pickle, which could run any code when read", f"where you trust it, {_EXPORT}"),
}
# What a zip archive is, by a file in it: torch's own checkpoints have data.pkl.
_IN_ZIP: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"(^|/)constants\.pkl$"),
        "a TorchScript archive, which is code and weights in one",
        "convert it once: torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')",
    ),
    (
        re.compile(r"(^|/)(serialized_exported_program\.json|archive_format)$"),
        "a program of torch.export",
        "convert it once: torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
    ),
    (re.compile(r"^MAR-INF/"), "a TorchServe archive", "serve it with `convlens serve`, or unzip it"),
    (re.compile(r"^(model\.weights\.h5|metadata\.json)$"), "a Keras file", f"convert it to PyTorch, then {_EXPORT}"),
    (
        re.compile(r"\.npy$"),
        "a NumPy .npz archive",
        "convert it once: safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')",
    ),
)
# What torch's restricted unpickler raises for a file that is cut short or no checkpoint at all.
_DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


def read_weights_file(path: Path) -> Any:
    """What a weights file holds: tensors in mappings and sequences, and plain values beside them.

    Reads ``.safetensors``, an index of shards (``….index.json``), and what ``torch.save`` writes under the suffixes
    ``.pt .pth .bin .th .tar .ckpt`` (with ``weights_only=True``; objects of a fixed list of plain kinds are replaced
    by inert ones). Raises ModelError for a file that is missing, damaged, of another kind, or a pickle that holds more.
    """
    head = _read_head(path)
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    _refuse_foreign(path, head)
    if _is_safetensors(head):  # whatever its name: nothing in such a file can be mistaken
        return _load_safetensors(path)
    return _load_pickled(path)


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        raise ModelError(f"weights file {path} is a folder; give one file in it ({held or 'it is empty'})")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise ModelError(f"weights file {path} cannot be read: {error.strerror}") from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    suffix = path.suffix.lower()
    kind = _foreign_kind(path, head)
    if kind is not None:
        wanted = "not a whole safetensors file" if suffix == SAFETENSORS else "not a PyTorch checkpoint"
        raise ModelError(f"weights file {path} is {kind[0]}, {wanted}; {kind[1]}")
    if suffix not in _SUFFIXES:
        raise ModelError(f"weights file {path} should end in one of {', '.join(_SUFFIXES)}")
    if not head:
        raise ModelError(f"weights file {path} is empty (0 bytes); {_AGAIN}")
    if suffix == SAFETENSORS and not _is_safetensors(head):
        raise ModelError(
            f"weights file {path} is not a whole safetensors file; {_AGAIN}, or give it the suffix that it should have"
        )


def _foreign_kind(path: Path, head: bytes) -> tuple[str, str] | None:
    """What the file is, if no PyTorch checkpoint, and what to do."""
    for offset, magic, what, remedy in _MAGIC:
        if head[offset:].startswith(magic):
            return what, remedy
    if _ONNX.match(head):
        return _BY_SUFFIX[".onnx"]
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    return _kind_of_text(head) or _BY_SUFFIX.get(path.suffix.lower())


def _kind_of_zip(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "cut short or damaged (a zip archive without its end)", _AGAIN
    for pattern, what, remedy in _IN_ZIP:
        if any(map(pattern.search, names)):
            return what, remedy.replace("FILE", repr(path.name))
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"a zip archive (of {', '.join(names[:4])})", "unpack it and give the file inside"


def _kind_of_text(head: bytes) -> tuple[str, str] | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "a web page (HTML or XML)", "download the file itself, by its raw or `resolve` link"
    if not text or not all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text):
        return None
    begin = text[:40].decode("ascii").split("\n")[0]
    return f"text, beginning {begin!r}", "download the file itself; an error message may have been saved in its place"


def _is_safetensors(head: bytes) -> bool:
    """Whether these bytes are the length of a JSON header and its beginning."""
    return len(head) > 8 and int.from_bytes(head[:8], "little") < 100_000_000 and head[8:9] == b"{"


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights file {path} is not a whole safetensors file: {error}; {_AGAIN}") from error


def _read_shards(path: Path) -> dict[str, Any]:
    """All tensors of the files that a Hugging Face index names."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"weights file {path} is no index of shards (an object with weight_map): {error!r}") from error
    whole: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name.endswith(_INDEX):
            raise ModelError(f"weights file {path} names the shard {name!r}; it should be a file in the same folder")
        content = read_weights_file(path.parent / name)
        if not isinstance(content, Mapping):
            raise ModelError(f"weights file {path.parent / name} holds a {type(content).__name__} and no tensors")
        whole.update(content)
    absent = [name for name in places if name not in whole]
    if absent:
        raise ModelError(f"the shards of {path} lack {len(absent)} tensors ({', '.join(absent[:4])}); {_AGAIN}")
    return whole


class _Inert:
    """Stands for an object of the file: takes every argument and state, keeps nothing and calls nothing."""

    def __new__(cls, *args: object) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertMapping(_Inert):
    """Stands for a class of mappings; an instance is a plain OrderedDict, which the unpickler may fill."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


class _InertSequence(_Inert):
    """Stands for a class of sequences; an instance is a plain list, which the unpickler may fill."""

    def __new__(cls, *args: object) -> Any:
        return []


# All that a checkpoint may hold beside what torch allows of itself (tensors, OrderedDict, Counter, plain Python).
_VALUES = (
    *("argparse.Namespace", "types.SimpleNamespace"),
    *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("numpy.float16", "numpy.float32", "numpy.float64"),
    *("numpy.bool", "numpy.bool_", "numpy.str_", "numpy.bytes_"),
    *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath")),
    *("pathlib.PureWindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{kind}" for kind in ("int", "float", "bool", "str", "bytes", "tuple", "list", "dict", "object")),
    *("builtins.frozenset", "builtins.range", "builtins.slice", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *("torch.torch_version.TorchVersion", "typing.Any"),
    # Old versions of Lightning key the state of callbacks by their class, MMEngine keeps the history of its losses.
    *(f"pytorch_lightning.callbacks.{place}" for place in ("ModelCheckpoint", "model_checkpoint.ModelCheckpoint")),
    *(f"pytorch_lightning.callbacks.{place}" for place in ("EarlyStopping", "early_stopping.EarlyStopping")),
    *("mmengine.logging.history_buffer.HistoryBuffer", "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
)
_MAPPINGS = (
    *("collections.defaultdict", "easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode"),
    *("fvcore.common.config.CfgNode", "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
    *("lightning.fabric.utilities.data.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"),
)
_SEQUENCES = ("collections.deque",)


def _stand_ins(names: tuple[str, ...], base: type[_Inert]) -> Iterator[tuple[Callable[..., Any], str]]:
    # One class a name, called as the real one, for messages that name an entry's type.
    return ((type(name.rpartition(".")[2], (base,), {}), name) for name in names)


_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *_stand_ins(_VALUES, _Inert),
    *_stand_ins(_MAPPINGS, _InertMapping),
    *_stand_ins(_SEQUENCES, _InertSequence),
]
# Of names in a file that torch refused, those that it did not refuse for.
_ALLOWED = frozenset({*_VALUES, *_MAPPINGS, *_SEQUENCES, "collections.OrderedDict", "collections.Counter"})
_TENSORS = re.compile(r"torch\.(_utils|storage|nn\.parameter|_tensor)\.|torch\.(\w*Storage|Size)$|_codecs\.encode$")
_STREAMS = 4  # pickles one after the other in a file of torch's old format
# torch keeps one list for the process: a second thread that leaves must not take it from one that still reads.
_SAFE_LOCK = threading.Lock()


def _load_pickled(path: Path) -> Any:
    with _SAFE_LOCK, torch.serialization.safe_globals(_SAFE):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(_unsafe_message(path, str(error))) from error
        except _DAMAGED as error:
            raise ModelError(f"weights file {path} cannot be read as a state dict: {error}; {_AGAIN}") from error


def _unsafe_message(path: Path, reason: str) -> str:
    names = _unsafe_globals(path, reason)
    if not names:
        return (
            f"weights file {path} is damaged, or a pickle of a protocol that torch does not read without running code; "
            f"{_AGAIN}, or save it again: torch.save(model.state_dict(), 'weights.pt')"
        )
    whole = any(name.startswith("torch.nn.modules.") for name in names)
    what = "a whole pickled network" if whole else "objects beside them"
    loaded = f"torch.load({path.name!r}, weights_only=False), or the entry of it that is the network"
    return (
        f"weights file {path} is a pickle that holds more than tensors: {what} "
        f"({', '.join(names[:6])}{', …' if len(names) > 6 else ''}); reading it could run any code in it, so it was "
        "refused. Where you trust it, convert it once, in the project that it comes from: "
        "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), model being "
        f"{loaded if whole else 'the network that it was loaded into'}"
    )


def _unsafe_globals(path: Path, reason: str) -> list[str]:
    """The names of code in the file that are not on the safe list, without running any of it."""
    if zipfile.is_zipfile(path):
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except (*_DAMAGED, pickle.UnpicklingError):
            return _REFUSED_GLOBAL.findall(reason)
    with path.open("rb") as file:
        names = dict.fromkeys(name for _ in range(_STREAMS) for name in _globals(file))
    return [name for name in names if name not in _ALLOWED and not _TENSORS.match(name)]


def _globals(file: BinaryIO) -> list[str]:
    """The names of code in one pickle, up to its end or to where it is no pickle."""
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", ".").replace("__builtin__", "builtins"))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except (*_DAMAGED, pickle.UnpicklingError):
        pass  # what was named before the damage is still worth naming
    return names
