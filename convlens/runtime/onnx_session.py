"""Sessions of ONNX Runtime on the provider asked for and no other, and the arrays that go into and out of a run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from convlens.errors import ModelError, OutOfMemoryError, RequestError
from convlens.runtime.graph_contract import Port
from convlens.runtime.memory import is_out_of_memory

Providers = Literal["auto", "cpu", "cuda"]
_CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# What ONNX Runtime raises; they have no common base below Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)

InputArray = Tensor | NDArray[Any]
_TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}


# ---- sessions


def provider_of(providers: str) -> str:
    """ONNX Runtime's name for ``cpu``, ``cuda``, or ``auto``: CUDA where torch finds a GPU, else the CPU."""
    if providers not in get_args(Providers):
        raise ModelError(f"no provider {providers!r}; there are: {', '.join(get_args(Providers))}")
    # Torch is asked: get_available_providers() names CUDA on machines without a GPU too, since it tells how the wheel
    # was built.
    return CUDA if providers == "cuda" or (providers == "auto" and torch.cuda.is_available()) else _CPU


def open_session(
    graph: Path | str | bytes,
    label: str,
    provider: str,
    *,
    device_id: int,
    threads: int | None,
    spin: bool,
    memory_limit_bytes: int | None,
    tf32: bool = False,
) -> Any:
    """An InferenceSession; ``label`` names the graph in errors, ``OnnxRuntime`` explains the options.

    Raises ModelError for what cannot be opened, and where ONNX Runtime comes up on another provider.
    """
    settings = _provider_settings(provider, device_id, memory_limit_bytes, tf32)
    options = _session_options(threads, spin)
    if provider == CUDA:
        ort.preload_dlls()  # the CUDA libraries that came with torch
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = ort.InferenceSession(source, options, providers=[(provider, settings)], enable_fallback=0)
    except ORT_ERRORS as error:
        raise ModelError(f"{label} cannot be opened by ONNX Runtime {ort.__version__}: {_short(error)}") from error
    # Beside enable_fallback: a provider that does not start is left out, with no more than a message in the log.
    if session.get_providers()[0] != provider:
        raise ModelError(
            f"{provider} was asked for, but ONNX Runtime could not start it here (it offers "
            f"{', '.join(session.get_providers())}); ask for cpu, or see its messages above"
        )
    return session


def run_error(error: Exception, name: str) -> ModelError | OutOfMemoryError:
    """A failed run's exception as an error of ours; ``name`` says what ran."""
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{name} ran out of memory: {_short(error)}; use smaller batches or another device")
    return ModelError(f"{name} failed: {_short(error)}")


def _provider_settings(provider: str, device_id: int, memory_limit_bytes: int | None, tf32: bool) -> dict[str, str]:
    if provider == _CPU:
        if memory_limit_bytes is not None:
            raise ModelError("memory_limit_bytes bounds ONNX Runtime's memory on a GPU; leave it out on the CPU")
        return {}
    # Said, since ONNX Runtime's default is TF32, three digits of float32's seven.
    settings = {"device_id": str(device_id), "arena_extend_strategy": "kSameAsRequested", "use_tf32": str(int(tf32))}
    return settings if memory_limit_bytes is None else settings | {"gpu_mem_limit": str(memory_limit_bytes)}


def _session_options(threads: int | None, spin: bool) -> Any:
    if threads is not None and threads < 1:
        raise ModelError(f"threads={threads} cannot work; use 1 or more, or leave it out for one a core")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: one a core
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.enable_mem_pattern = False  # it lays out each run's memory anew: a fifth more, and no faster
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@functools.cache
def _share_arena() -> None:
    """Make the arena of sessions with ``use_env_allocators``; once a process."""
    # A session otherwise keeps an arena of its own, at the size of its largest run, for as long as it lives: three
    # sessions of the default model held 283 MB after batches of 8, and 90 MB with a shared arena, at the same speed.
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


# ---- inputs and outputs


def as_input(array: InputArray, port: Port, device: torch.device) -> Tensor:
    """The array as a contiguous tensor of the port's type on that device; it may share the array's memory.

    Floats are cast to floats of another width. Raises RequestError for another shape, and for any other type.
    """
    # By way of one axis: torch takes no array whose axes run backwards, not even one of a single element.
    tensor = array if isinstance(array, Tensor) else torch.as_tensor(np.ravel(array).reshape(array.shape))
    dtype = _TORCH_TYPES[port.dtype]
    fits = len(tensor.shape) == len(port.shape) and all(
        isinstance(expected, str) or expected == size for expected, size in zip(port.shape, tensor.shape, strict=True)
    )
    castable = tensor.dtype == dtype or (tensor.dtype.is_floating_point and dtype.is_floating_point)
    if not (fits and castable):
        raise RequestError(
            f"{port.name} should be {port.dtype} of shape {port.shape}; "
            f"got {str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        )
    return tensor.detach().to(device=device, dtype=dtype).contiguous()


def named_sizes(inputs: list[Tensor], ports: tuple[Port, ...]) -> dict[str, int]:
    """The sizes of the ports' named dimensions (``N``) in this run."""
    names = [dim for port in ports for dim in port.shape]
    sizes = [size for tensor in inputs for size in tensor.shape]
    return {name: size for name, size in zip(names, sizes, strict=True) if isinstance(name, str)}


def empty_output(port: Port, sizes: Mapping[str, int], device: torch.device) -> Tensor:
    """Memory for an output, its named dimensions as in ``sizes``."""
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in port.shape]
    return torch.empty(shape, dtype=_TORCH_TYPES[port.dtype], device=device)


def binding_arguments(tensor: Tensor, port: Port) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Where the tensor lies, as ``bind_input`` and ``bind_output`` want it behind the name."""
    device_id = tensor.device.index or 0
    return tensor.device.type, device_id, np.dtype(port.dtype), tuple(tensor.shape), tensor.data_ptr()


def split(x_NCHW: InputArray, size: int) -> list[InputArray]:
    """The images in batches of at most ``size``; RequestError for none."""
    if not len(x_NCHW):
        raise RequestError("no images were given; give one or more")
    return [x_NCHW[start : start + size] for start in range(0, len(x_NCHW), size)]
