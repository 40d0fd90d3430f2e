"""``convlens query``: pictures to a running server, its answers to a table and, where asked, to a folder.

``convlens probe``: whether a server answers, for health checks.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from convlens import client, image
from convlens.cli.console import console, counted, out
from convlens.cli.options import NEURON, asked_target, method_params, wanted_names
from convlens.cli.results import Answer, show_table, write_folder
from convlens.client.auth import TOKEN_VARIABLE
from convlens.errors import ConvLensError, RequestError
from convlens.protocol.params import Params, parse_params
from convlens.torchserve.health import MODEL, TIMEOUT_S, URL, ended
from convlens.types import Attribution, Reply

_SIDE = 224  # of a picture in the report that no map gives a size


def query(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    url: Annotated[str, typer.Option(help="The server's inference address.")] = "http://127.0.0.1:8080",
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask over gRPC, at --address.")] = False,
    address: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC inference.")] = "127.0.0.1:7070",
    model: Annotated[str, typer.Option(help="The model's name on that server.")] = "convlens",
    methods: Annotated[
        str, typer.Option(help="Explanations, comma-separated; or `all`. Default: those the archive names.")
    ] = "",
    option: Annotated[list[str], typer.Option("--set", help="Option of a method, such as occlusion.window=48.")] = [],  # noqa: B006
    target: Annotated[
        str, typer.Option(help="Class to explain: a label or an index. Default: the predicted class.")
    ] = "",
    neuron: Annotated[str, NEURON] = "",
    topk: Annotated[int, typer.Option(help="How many classes to list.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for arrays, overlays and a report.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help=f"The server's key_file.json, for its token. Default: the token in ${TOKEN_VARIABLE}."),
    ] = None,
    at_once: Annotated[int, typer.Option(help="How many pictures are under way at a time.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 120.0,
) -> None:
    """Ask a running server, over REST or gRPC, to predict and explain pictures."""
    params = _params(methods, option, asked_target(target, neuron), topk, with_pictures=output is not None)
    given: dict[str, Any] = {"model": model, "key_file": key_file, "timeout_s": timeout}
    asked = client.GrpcClient(address, **given) if grpc else client.Client(url, **given)
    with asked:
        answers, failed = _answer_all(asked, images, params, at_once=at_once)
    if answers:
        if output is not None:
            write_folder(output, answers, model=answers[0].reply.model_name)
        show_table(answers)
    if answers and output is not None:
        out.print(f"report: {output / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    for path, error in failed:
        said = f"no answer for {shlex.quote(str(path))}: {error.message}"
        console.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _params(methods: str, option: Sequence[str], target: dict[str, Any], topk: int, *, with_pictures: bool) -> Params:
    given: dict[str, Any] = {"topk": topk, "explain": True}
    if names := wanted_names(methods):
        given["methods"] = method_params(names, option)
    elif option:
        raise RequestError(f"--set {option[0]} needs its method named by --methods")
    return parse_params(given | target | {"output": ["array", "overlay", "heatmap"] if with_pictures else []})


def _answer_all(
    asked: client.BaseClient, paths: Sequence[Path], params: Params, *, at_once: int
) -> tuple[list[Answer], list[tuple[Path, ConvLensError]]]:
    answers: list[Answer] = []
    failed: list[tuple[Path, ConvLensError]] = []
    said: dict[str, Any] = params.model_dump(exclude_unset=True, exclude_none=True, exclude={"explain"})
    with counted("asking", len(paths)) as bar:
        for path, reply in zip(paths, asked.explain_many(paths, at_once=at_once, **said), strict=True):
            if isinstance(reply, Reply):
                answers.append(Answer(path.name, _view(path, reply) if params.output else b"", reply, params))
            else:
                failed.append((path, reply))
            bar.advance(bar.task_ids[0])
    return answers, failed


def _view(path: Path, reply: Reply) -> bytes:
    """What the model saw of the picture, by the place that the server names, as large as the maps."""
    picture = image.read(path)
    box = reply.placement.box if reply.placement else (0.0, 0.0, *picture.size)
    shapes = [one.result.values_NCHW.shape for one in reply.explanations if isinstance(one.result, Attribution)]
    height, width = shapes[0][2:] if shapes else (_SIDE, _SIDE)
    seen = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return image.encode_png(np.asarray(seen))


def probe(
    url: Annotated[str, typer.Option(help="Inference address of the server.")] = URL,
    model: Annotated[list[str] | None, typer.Option(help=f"Model entry; may be repeated; default: {MODEL}.")] = None,
    grpc: Annotated[str, typer.Option(help="Ask this HOST:PORT over gRPC instead.")] = "",
    key_file: Annotated[
        Path | None, typer.Option(help="File with the token; default: $CONVLENS_TOKEN, then one at hand.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for all entries together.")] = TIMEOUT_S,
) -> None:
    """Ask every model entry for a tiny inference: exit code 0 where each answers, else 1 and a line why."""
    raise typer.Exit(ended(url, model or [MODEL], grpc=grpc, key_file=key_file, timeout_s=timeout))
