"""``convlens query``: images to a running server; its replies as a table and, on request, as a folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageOps

from convlens import client, image
from convlens.cli.console import print_error, print_lattice_left_out, print_result, print_warning, progress_bar
from convlens.cli.interrupts import stoppable
from convlens.cli.options import (
    MethodSettings,
    NeuronOption,
    SingleFileOption,
    TargetOption,
    TopKOption,
    method_params,
    parse_methods,
    parse_names,
    target_param,
)
from convlens.cli.results import REPORT, ImageResult, require_results_folder, show_table, write_results
from convlens.cli.server_address import GrpcAddressOption, ServedModelOption, ServerOption, find_server
from convlens.errors import ConvLensError, RequestError
from convlens.explain.methods.deconvnet import LATTICE
from convlens.features.image_list import expand_folders
from convlens.protocol.params import Params, parse_params
from convlens.types import Attribution, Explanation, Reply

_VIEW_SIDE = 224  # pixels, of an image in the report where no map gives a size


def query(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    url: ServerOption = "",
    grpc: Annotated[bool, typer.Option("--grpc", help="Use gRPC instead of REST.")] = False,
    address: GrpcAddressOption = "",
    model: ServedModelOption = "",
    methods: Annotated[
        list[str],
        typer.Option(help="Methods, comma-separated, or `all`; may be repeated. Default: those set in the archive."),
    ] = [],  # noqa: B006 - typer's way; never changed
    option: MethodSettings = [],  # noqa: B006
    target: TargetOption = "",
    neuron: NeuronOption = "",
    topk: TopKOption = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for arrays, overlays and a report.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="The server's key_file.json with its token. Default: that of the server started here, else "
            "$CONVLENS_TOKEN."
        ),
    ] = None,
    at_once: Annotated[int, typer.Option(help="Number of images in flight at a time.")] = 4,
    timeout: Annotated[float, typer.Option(help="Time limit in seconds for one reply.")] = 120.0,
    single_file: SingleFileOption = False,
) -> None:
    """Predict and explain images on a running server, over REST or gRPC."""
    if output is not None:
        require_results_folder(output)
    params = _params(methods, option, target_param(target, neuron), topk, with_images=output is not None)
    server = find_server(url, grpc=address, asks_grpc=grpc, model=model, key_file=key_file)
    paths = list(expand_folders(images))
    settings: dict[str, Any] = {"model": server.model, "key_file": server.key_file, "timeout_s": timeout}
    connection = client.GrpcClient(server.grpc, **settings) if grpc else client.Client(server.rest, **settings)
    results: list[ImageResult] = []
    failures: list[tuple[Path, ConvLensError]] = []
    with stoppable() as stop, connection:
        for path, result in _query_all(connection, paths, params, at_once=at_once):
            if isinstance(result, ConvLensError):
                failures.append((path, result))
            else:
                results.append(result)
    if stop.code:
        print_warning(f"interrupted: {len(results)} of {len(paths)} images are answered")
    results = _without_lattice(results, asked=parse_names(methods))
    if results:
        if output is not None:
            write_results(output, results, model=results[0].reply.model_name, single_file=single_file)
        show_table(results)
    if results and output is not None:
        print_result(f"report: {output / REPORT}")
    for path, error in failures:
        print_error(f"no answer for {shlex.quote(str(path))}: {error.message}")
    stop.leave()
    if failures:
        raise typer.Exit(1)


def _without_lattice(results: Sequence[ImageResult], *, asked: Sequence[str]) -> list[ImageResult]:
    """The results of ``--methods all`` less deconvnet's maps where they are the same for every image.

    Only the server knows its network, and says so with each map.
    """
    if "all" not in asked or "deconvnet" in asked:
        return list(results)
    kept, left_out = [], []
    for result in results:
        explanations = [item for item in result.reply.explanations if LATTICE not in _warnings(item)]
        kept.append(replace(result, reply=replace(result.reply, explanations=tuple(explanations))))
        left_out.append(len(explanations) < len(result.reply.explanations))
    if any(left_out):
        print_lattice_left_out(results[0].reply.model_name)
    return kept


def _warnings(explanation: Explanation) -> tuple[str, ...]:
    return explanation.result.meta.warnings if isinstance(explanation.result, Attribution) else ()


def _params(
    methods: Sequence[str], settings: Sequence[str], target: dict[str, Any], topk: int, *, with_images: bool
) -> Params:
    request: dict[str, Any] = {"topk": topk, "explain": True}
    if names := parse_methods(methods):
        request["methods"] = method_params(names, settings)
    elif settings:
        raise RequestError(f"--set {settings[0]} needs its method named by --methods")
    return parse_params(request | target | {"output": ["array", "overlay", "heatmap"] if with_images else []})


def _query_all(
    connection: client.BaseClient, paths: Sequence[Path], params: Params, *, at_once: int
) -> Iterator[tuple[Path, ImageResult | ConvLensError]]:
    """Each image with its answer or error, as it comes."""
    request: dict[str, Any] = params.model_dump(exclude_unset=True, exclude_none=True, exclude={"explain"})
    answers = connection.explain_many(paths, at_once=at_once, **request)
    with progress_bar("querying", len(paths)) as bar, closing(answers):
        for path, reply in zip(paths, answers, strict=True):
            if isinstance(reply, Reply):
                yield path, ImageResult(path.name, _view(path, reply) if params.output else b"", reply)
            else:
                yield path, reply
            bar.advance(bar.task_ids[0])


def _view(path: Path, reply: Reply) -> bytes:
    """What the model saw of the image, as PNG of the maps' size: the reply's ``placement`` says which part that was."""
    original = image.read_shown(path)
    box = reply.placement.box if reply.placement else (0.0, 0.0, *original.size)
    shapes = [item.result.values_NCHW.shape for item in reply.explanations if isinstance(item.result, Attribution)]
    height, width = shapes[0][2:] if shapes else (_VIEW_SIDE, _VIEW_SIDE)
    # A model with a border sees grey around the image.
    left, top = math.ceil(max(0.0, -box[0])), math.ceil(max(0.0, -box[1]))
    right, bottom = (math.ceil(max(0.0, box[2 + n] - original.size[n])) for n in (0, 1))
    if left or top or right or bottom:
        original = ImageOps.expand(original, (left, top, right, bottom), fill=(128, 128, 128))
        box = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    view = original.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return image.encode_png(np.asarray(view))
