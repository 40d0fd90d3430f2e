"""Whether a network's answer is a function of the image alone: not of chance, and not of the batch it comes in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.instrument import find_memory_format, in_format_of, private_tree
from convlens.models.network import FORWARD_ERRORS

# Of the largest logit. Sums in another order moved it by up to 3e-7 (benchmarks/load_checks.py: twenty families).
_TOLERANCE = 1e-3
ALLOWED = "allow"


def check_repeatable(module: nn.Module, x_NCHW: Tensor, logits_NK: Tensor, *, allow: bool) -> tuple[str, ...]:
    """Run the first of two images alone, and compare with its row of their batch; one pass, where all is well.

    It also finds out the network's memory format. Returns warnings for every result, of a network that is allowed to
    differ. Otherwise raises ModelError with the layer where answers begin to differ, and what to do.
    """
    alone_1K = _alone(module, x_NCHW[:1])
    if _close(alone_1K, logits_NK[:1]):
        return ()
    by_chance = not _close(_run(module, x_NCHW), _run(module, x_NCHW))
    if allow:
        cause = "chance" if by_chance else "the other images of a batch"
        return (f"this network's answers depend on {cause}, and so do all explanations of them",)
    other_NCHW, rows = (x_NCHW, 2) if by_chance else (x_NCHW[:1], 1)
    place = _first_difference(module, x_NCHW, other_NCHW, rows)
    raise ModelError(_by_chance(place) if by_chance else _by_batch(place))


def _alone(module: nn.Module, x_1CHW: Tensor) -> Tensor:
    try:
        logits_1K = find_memory_format(module, x_1CHW)
        return _run(module, x_1CHW) if logits_1K is None else logits_1K
    except FORWARD_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"the network takes two images at once and fails on one alone ({reason}); make it, or export it, for "
            "batches of any size"
        ) from error


def _by_chance(place: str) -> str:
    return (
        f"the network gives the same images other answers each time; the first that differs is {place}. Turn off what "
        "draws at random there (F.dropout needs training=self.training), or allow it by unrepeatable='allow': every "
        "result then bears a warning"
    )


def _by_batch(place: str) -> str:
    return (
        f"the network answers otherwise where an image shares its batch with another; the first that differs is "
        f"{place}. A batch norm needs the statistics of its training (track_running_stats=True, then train or load "
        "them), or allow it by unrepeatable='allow': every result then bears a warning"
    )


def _run(module: nn.Module, x_NCHW: Tensor) -> Tensor:
    with torch.no_grad():
        logits_NK: Tensor = module(in_format_of(module, x_NCHW))
    return logits_NK


def _close(one_NK: Tensor, other_NK: Tensor) -> bool:
    # Weights that give NaN are found, and reported, by whoever reads scores.
    scale = torch.nan_to_num(other_NK).abs().max()
    return bool(torch.isclose(one_NK, other_NK, rtol=0, atol=_TOLERANCE * float(scale) + 1e-6, equal_nan=True).all())


def _first_difference(module: nn.Module, x_NCHW: Tensor, other_NCHW: Tensor, rows: int) -> str:
    """The first layer to end whose first ``rows`` rows differ between a pass of each."""
    one, other = _outputs(module, x_NCHW), _outputs(module, other_NCHW)
    before = "the input"
    for (name, kind, a), (_, _, b) in zip(one, other, strict=False):
        if a.shape[1:] != b.shape[1:] or not _close(a[:rows], b[:rows]):
            return f"{name} ({kind}), behind {before}"
        before = name
    return f"what comes behind {before}"


def _outputs(module: nn.Module, x_NCHW: Tensor) -> list[tuple[str, str, Tensor]]:
    """Name, kind and output of all innermost layers, as they end."""
    tree, outputs = private_tree(module), list[tuple[str, str, Tensor]]()

    def note(name: str, layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim and len(output) == len(x_NCHW):
            outputs.append((name, type(layer).__name__, output.detach().float().clone()))

    for name, layer in tree.named_modules():
        if name and not list(layer.children()) and not isinstance(layer, torch.jit.ScriptModule):
            layer.register_forward_hook(partial(note, name))
    _run(tree, x_NCHW)
    return outputs
