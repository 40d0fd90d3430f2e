"""The table of worked numbers: a gradient at a ReLU by the three rules."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import Drawn, Figure, Lecture, chapter
from convlens.lecture.relu_table import draw_relu_table, relu_table


@chapter("relu", title="How gradients pass a ReLU", place=8)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """One figure, the same for every network."""

    def draw() -> Drawn:
        table = relu_table()
        numbers = {
            "input": table.input_HW.tolist(),
            "output": table.output_HW.tolist(),
            "gradient": table.gradient_HW.tolist(),
            "passed": {rule: passed_HW.tolist() for rule, passed_HW in table.passed.items()},
        }
        return Drawn(draw_relu_table(table), numbers)

    yield Figure(
        name="relu",
        title="Backpropagation, deconvnet, guided backpropagation",
        shows="The lecture's example, computed: nine inputs of a ReLU, the gradient that arrives at its output, and "
        "what each rule lets through to its input. The rules differ in nothing else; a "
        "network's maps differ only by them.",
        does_not_show="Only plain backpropagation is the gradient of anything. The other two are chosen because their "
        "pictures are clearer, and what they drop is evidence too.",
        commands=(),
        draw=draw,
    )
