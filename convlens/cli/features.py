"""``convlens features``: a folder of images in, a folder of their features out."""

from __future__ import annotations

from typing import Annotated

import typer

from convlens.cli.console import print_message, print_result, print_skipped, spinner, throughput_bar
from convlens.cli.interrupts import resumable
from convlens.cli.models import accelerated
from convlens.cli.options import (
    DEFAULT_MODEL,
    AccelerateOption,
    DeviceOption,
    GraphOption,
    ImagesToRead,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    RayOption,
    ResumedFolder,
)
from convlens.features.embedder import open_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.image_list import find_images
from convlens.features.loader import BATCH_SIZE
from convlens.features.output_dir import interrupted_images, interrupted_runtime, require_usable
from convlens.features.row_files import Format
from convlens.models import load
from convlens.runtime.torch_runtime import TorchRuntime, keep_freed_memory


def features(
    pictures: ImagesToRead,
    output: ResumedFolder,
    model: ModelOption = DEFAULT_MODEL,
    graph: GraphOption = None,
    format: Annotated[Format, typer.Option(help="npy: one .npy file; safetensors: shards of 16,384 rows.")] = "npy",
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = BATCH_SIZE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    accelerate: AccelerateOption = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read images. Default: one per CPU core.")
    ] = None,
    ray: RayOption = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Write the embeddings of many images, and a table of which image each row is."""
    keep_freed_memory()
    require_usable(output, overwrite=overwrite)
    files = find_images(pictures)

    def kept() -> str:
        return f"{interrupted_images(output)} of {len(files)} images are done and kept in {output}"

    if ray:
        from convlens.jobs.ray_cluster import extract_on

        with resumable(kept), throughput_bar("extracting", len(files)) as update:
            extraction = extract_on(
                ray,
                files,
                output,
                model=model,
                graph=graph,
                format=format,
                batch=batch,
                device=device,
                precision=precision,
                overwrite=overwrite,
                on_step=lambda done, _: update(done),
            )
    else:
        with spinner(f"loading {model}"):
            classifier = load(model, device=device, precision=precision)
        by_graph = accelerate and not graph and interrupted_runtime(output) != TorchRuntime.name
        embedder = open_embedder(accelerated(classifier, wanted=by_graph), graph, batch=batch)
        with resumable(kept), throughput_bar("extracting", len(files)) as update:
            extraction = extract(
                files,
                output,
                embedder,
                format=format,
                batch=batch,
                workers=workers,
                overwrite=overwrite,
                on_step=lambda done, _: update(done),
            )
    _show_extraction(extraction)


def _show_extraction(extraction: Extraction) -> None:
    print_skipped((failure.id, failure.reason) for failure in extraction.unreadable)
    if extraction.resumed:
        print_message(f"{extraction.resumed} images were done by an earlier run")
    print_result(f"{extraction.rows} × {extraction.dimensions} features in {extraction.folder}")
