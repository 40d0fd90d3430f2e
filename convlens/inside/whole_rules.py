"""Bounds through what joins a whole axis: means, norms, softmax, fully connected layers, products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from convlens.errors import UnsupportedModelError
from convlens.inside.bounds import ROWS, hull, joined
from convlens.inside.calls import Call, is_marked

Rule = Callable[[Call], Tensor]


def _reduction(call: Call) -> Tensor:
    bounds: Tensor = call.given["self"]
    dims = _dims(call, bounds.ndim)
    # Of pictures (N, C, H, W) the last two axes are places, even where the map is a single one.
    around = _around(bounds, dims, of_places=bounds.ndim == 4 and min(dims) >= 2)
    return around.reshape(call.shape())


def _along(call: Call) -> Tensor:
    """Every value hears of all others along the axis, as in a softmax."""
    bounds: Tensor = call.given["self"]
    return hull(bounds, call.given["dim"] % bounds.ndim).expand_as(bounds).contiguous()


def _layer_norm(call: Call) -> Tensor:
    bounds: Tensor = call.given["input"]
    dims = range(bounds.ndim - len(call.given["normalized_shape"]), bounds.ndim)
    return _around(bounds, dims).expand_as(bounds).contiguous()


def _group_norm(call: Call) -> Tensor:
    bounds: Tensor = call.given["input"]
    grouped = bounds.reshape(ROWS, call.given["group"], -1)
    return hull(grouped, 2).expand_as(grouped).reshape(bounds.shape)


def _batch_norm(call: Call) -> Tensor:
    """By constants in an ordinary network; by the map's own statistics in instance normalisation, where torch makes
    one long row of channels of the batch.
    """
    bounds: Tensor = call.given["input"]
    if not call.given.get("training", False):
        return bounds.clone()
    if bounds.shape[0] != 1:
        raise UnsupportedModelError("statistics over several pictures")
    rows = bounds.reshape(ROWS, -1, *bounds.shape[2:])
    return _around(rows, range(2, rows.ndim), of_places=True).expand_as(rows).reshape(bounds.shape)


def _product(call: Call) -> Tensor:
    """Of matrices: element (i, j) hears of row i of the left and of column j of the right one."""
    given, shape = call.given, call.shape()
    left, right = (given[name] for name in _FACTORS[call.name])
    parts = [given["self"]] if call.name in _WITH_BIAS and is_marked(given["self"]) else []
    if is_marked(right):
        if right.ndim == 2:
            raise UnsupportedModelError("a product that mixes the pictures of a batch")
        parts.append(hull(right, right.ndim - 2))
    if is_marked(left):
        parts.append(hull(left, left.ndim - 1, of_places=left.ndim == 2 and left.shape[0] == ROWS))
    return joined([part.expand(shape) for part in parts])


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}
_WITH_BIAS = ("addmm", "baddbmm")  # as "self"


def _dims(call: Call, ndim: int) -> list[int]:
    given = call.given.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(ndim))
    return [dim % ndim for dim in dims]


def _around(bounds: Tensor, dims: Iterable[int], *, of_places: bool = False) -> Tensor:
    for dim in dims:
        if dim == 0:
            raise UnsupportedModelError("a reduction that mixes the pictures of a batch")
        bounds = hull(bounds, dim, of_places=of_places)
    return bounds


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp"), _reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _along),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(_FACTORS, _product),
}
