"""The lecture's table of worked numbers: how a gradient passes a ReLU by each of the three rules.

The input and the gradient are those of Springenberg et al. 2014 (arXiv:1412.6806), figure 1, which the lecture shows;
the rest is computed by the rules that every explanation of a network is computed by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from convlens.instrument.relu_rules import RULES, RuledRelus
from convlens.types import Bytes8, Floats
from convlens.visualization import diverging
from convlens.visualization.layout import add_frame, add_margin, hstack, text_image, vstack

INPUT = ((1.0, -1.0, 5.0), (2.0, -5.0, -7.0), (-3.0, 2.0, 4.0))
GRADIENT = ((-2.0, 3.0, -1.0), (6.0, -3.0, 1.0), (2.0, -1.0, 3.0))
_TITLES = {
    "plain": "Backpropagation: the gradient where the input was above 0",
    "deconvnet": "Deconvnet: the gradient where the gradient is above 0",
    "guided": "Guided backpropagation: where both are above 0",
}
_CELL, _LETTERS, _CAPTION = 64, 24, 15  # pixels


@dataclass(frozen=True)
class ReluTable:
    """A ReLU's input and output, the gradient that arrives at its output, and by rule what leaves at its input."""

    input_HW: Floats
    output_HW: Floats
    gradient_HW: Floats
    passed: Mapping[str, Floats]


def relu_table() -> ReluTable:
    """One forward pass through a ReLU and, by each rule, one backward pass."""
    x = torch.tensor(INPUT, requires_grad=True)
    gradient = torch.tensor(GRADIENT)
    with RuledRelus() as rules:
        y = functional.relu(x)
        passed: dict[str, Floats] = {}
        for rule in RULES:
            rules.set(rule)
            (grad,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
            passed[rule] = grad.numpy()
    return ReluTable(x.detach().numpy(), y.detach().numpy(), gradient.numpy(), passed)


def draw_relu_table(table: ReluTable) -> Bytes8:
    """Forward pass above, below it the gradient and what each rule lets through; red above 0, blue below."""
    forward = [
        _matrix(table.input_HW, "Forward: the ReLU's input"),
        _matrix(table.output_HW, "Its output: max(input, 0)"),
        _matrix(table.gradient_HW, "Backward: the gradient at its output"),
    ]
    backward = [_matrix(table.passed[rule], title) for rule, title in _TITLES.items()]
    return add_margin(vstack([hstack(forward, gap=32), hstack(backward, gap=32)], gap=24), margin=16)


def _matrix(values_HW: Floats, caption: str) -> Bytes8:
    """A square a number, coloured by it, above the caption."""
    limit = float(np.abs([INPUT, GRADIENT]).max()) * 2  # half the colours, so that dark numbers can be read on all
    colours_HWC = diverging(values_HW.astype(np.float64), limit=limit)
    rows = [
        hstack([_cell(f"{value:g}", colour) for value, colour in zip(*row, strict=True)], gap=2)
        for row in zip(values_HW.tolist(), colours_HWC, strict=True)
    ]
    body = vstack(rows, gap=2)
    return vstack([body, text_image(caption, size=_CAPTION, width=body.shape[1])], gap=6)


def _cell(text: str, colour: Bytes8) -> Bytes8:
    """The number in dark ink in the middle of its square."""
    number = text_image(text.replace("-", "−"), size=_LETTERS, width=_CELL)
    inked = np.argwhere((number < 200).any(axis=2))
    (top, left), (bottom, right) = inked.min(0), inked.max(0) + 1
    glyphs = number[top:bottom, left:right]
    cell_HWC = np.empty((_CELL, _CELL, 3), np.uint8)
    cell_HWC[:] = colour
    y, x = (_CELL - glyphs.shape[0]) // 2, (_CELL - glyphs.shape[1]) // 2
    area = cell_HWC[y : y + glyphs.shape[0], x : x + glyphs.shape[1]]
    # Ink multiplies the paper's colour.
    area[:] = np.rint(area * (glyphs / 255.0)).astype(np.uint8)
    return add_frame(cell_HWC)
