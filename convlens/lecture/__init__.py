"""The lecture "Visualizing and Understanding" (CS231n) on any network: every figure by a command, on one page.

base        what a lecture, a chapter and a figure are    writer    makes what is missing, and the page
outputs     what the commands wrote, as figures           relu_table   the lecture's worked numbers
chapters/   one file each
"""

from __future__ import annotations

from convlens.lecture.base import Chapter, Command, Figure, Lecture, chapter_names
from convlens.lecture.writer import write_lecture

__all__ = ["Chapter", "Command", "Figure", "Lecture", "chapter_names", "write_lecture"]
