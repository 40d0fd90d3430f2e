"""The pages of a batch in a real browser: nothing sticks out, every image is shown, words are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser_probe import BROWSER, DARK, WIDTHS, browse, serve
from PIL import Image

from convlens.jobs import Entry, run_batch
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.quilting import Quilt

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH"), pytest.mark.slow]
NETWORK = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft_" * 2


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch with a job that is done, one of several images, and one that fails."""
    folder = tmp_path_factory.mktemp("batch")
    path = folder / f"<script>console.error(1)<br>{LONG}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    jobs = {
        "laid": Quilt(source=str(path), height=96, width=96, block=16),
        "risen": Ascent(classes=(1, 2), steps=20, model=NETWORK, size=64),
        "x" * 100: Quilt(source=str(path), block=4000),
    }
    run_batch([Entry(name, job) for name, job in jobs.items()], folder / "out", device="cpu")
    return folder / "out"


# The index shows an image for each of the two that are done. 96 pixels take 7 × 7 blocks that overlap by 2, so of laid
# there are the texture, the figure and steps 1 to 32; of risen two images and steps 1 to 16.
@pytest.fixture(params=[("index.html", 2), ("laid/index.html", 8), ("risen/index.html", 7)], ids=lambda case: case[0])
def served(batch: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str], int]]:
    page, images = request.param
    with serve(batch, page) as (address, asked):
        yield address, asked, images


@pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
def test_a_browser_shows_the_page_at_every_width_with_readable_text_and_no_complaint(
    served: tuple[str, list[str], int], tmp_path: Path, flags: tuple[str, ...], is_dark: bool
) -> None:
    address, _, images = served
    frames, complaints = browse(address, tmp_path / "profile", *flags)
    assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
    assert {(frame["images"], frame["broken"]) for frame in frames} == {(images, 0)}
    assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
    assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
    assert "CONSOLE" not in complaints
