"""``convlens lecture``: every figure of "Visualizing and Understanding" on any network, on one page."""

from __future__ import annotations

import contextlib
import hashlib
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

import numpy as np
import typer
from PIL import Image

import convlens
from convlens import image
from convlens.cli.console import print_message, print_result, print_warning, spinner
from convlens.cli.demo import views
from convlens.cli.interrupts import exit_code, resumable
from convlens.cli.options import DEFAULT_MODEL, ModelOption, parse_names
from convlens.errors import ConvLensError, RequestError
from convlens.features.image_list import find_images
from convlens.lecture.base import Lecture, get_chapter
from convlens.lecture.writer import PAGE, lecture_folder, require_lecture_folder, write_lecture
from convlens.models import load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.utils.files import replace_folder

_PICTURES = "pictures"
_LONGEST = 512  # pixels of the photographs' copies
_SUBJECTS = 3
# What a photograph shows -> its file, in skimage/data or in sklearn/datasets/images; what is explained comes first.
_PHOTOGRAPHS = {
    "cat": "chelsea.png",
    "espresso": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
    "temple": "china.jpg",
    "flower": "flower.jpg",
    "gravel": "gravel.png",
    "brick": "brick.png",
    "grass": "grass.png",
    "coins": "coins.png",
    "stars": "hubble_deep_field.jpg",
    "photographer": "camera.png",
    "moon": "moon.png",
    "clock": "clock_motion.png",
    "retina": "retina.jpg",
    "tissue": "ihc.png",
    "cell": "cell.png",
    "page": "page.png",
    "handwriting": "text.png",
}
_TEXTURE = "gravel"
_REMARK = (
    f"The images are {len(_PHOTOGRAPHS)} photographs with five views of each, so that neighbours exist: that views of "
    "one photograph are found together shows robustness, not knowledge of a class."
)


def lecture(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the lecture; run the same command again to resume it.")
    ],
    model: ModelOption = DEFAULT_MODEL,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images; three are explained. Default: scikit-image's and sklearn's photographs."),
    ] = None,
    texture: Annotated[
        Path | None, typer.Option(help="Sample of a texture. Default: gravel; with --images, the first image.")
    ] = None,
    beside: Annotated[
        list[str], typer.Option(help="Another model whose filters stand beside this one's; may be repeated.")
    ] = [],  # noqa: B006 - typer's way; never changed
    chapters: Annotated[
        list[str],
        typer.Option(help="Chapters to make, comma-separated; may be repeated. Default: all. A wrong one lists them."),
    ] = [],  # noqa: B006
    quick: Annotated[bool, typer.Option(help="Few steps and small images, to try things out.")] = False,
) -> None:
    """Make every figure of the lecture "Visualizing and Understanding" from one network, on one page."""
    keep_freed_memory()
    require_lecture_folder(output)
    chosen = parse_names(chapters)
    for name in chosen:
        get_chapter(name)
    if images is not None and output.resolve().is_relative_to(images.resolve()):
        raise RequestError(
            f"{output} lies in --images {images}, whose images would then be its own; choose another folder",
            field="output",
        )
    with spinner(f"loading {model}"):
        classifier = load(model)
    given = [_absolute(path) for path in (images, texture)]
    description: dict[str, Any] = {
        "model": model,
        "weights_sha256": classifier.spec.weights_sha256,
        "images": _digest(images) if images else "photographs",
        "texture": _digest(texture) if texture else "",
        "beside": beside,
        "quick": quick,
        "convlens": convlens.__version__,
    }
    made: list[str] = []
    with (
        resumable(lambda: f"{max(0, len(made) - 1)} figures are made and kept; {output / PAGE} shows them"),
        lecture_folder(output, description) as folder,
    ):
        pictures, subjects, sample = _own_images(folder) if images is None else _images_of(Path(given[0]))
        plan = Lecture(
            folder=folder.resolve(),
            model=_with_whole_paths(model),
            classifier=classifier,
            pictures=pictures,
            subjects=tuple(subjects),
            texture=given[1] or sample,
            beside=tuple(map(_with_whole_paths, beside)),
            quick=quick,
            remark="" if images else _REMARK,
        )

        def show(chapter: str, figure: str) -> None:
            made.append(figure)
            print_message(f"{chapter}: {figure}")

        left_out = write_lecture(
            plan,
            lambda arguments: _run(arguments, plan.folder),
            chapters=chosen,
            on_figure=show,
        )
    for omission in left_out:
        print_warning(f"left out: {omission.title}: {omission.reason}")
    print_result(f"lecture: {output / PAGE}")


def _run(arguments: Sequence[str], folder: Path) -> None:
    """Run the command as its line would in that folder; what it prints as its result is in the figure."""
    from convlens.cli.main import build  # it imports this module when it builds this command

    # Errors are raised. An exit code only says that something was left out, and what the command wrote says what.
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        code = build(arguments)(list(arguments), standalone_mode=False)
    if code == exit_code(signal.SIGINT):
        raise KeyboardInterrupt
    if code == exit_code(signal.SIGTERM):
        sys.exit(code)


def _with_whole_paths(model: str) -> str:
    """The model's name with absolute paths of files: commands run in the lecture's folder, not in this one."""
    head, _, query = model.partition("?")
    source, _, rest = head.partition(":")
    if source == "file":
        path, _, factory = rest.rpartition(":")
        head = f"file:{Path(path).expanduser().resolve()}:{factory}"
    options = []
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        file = Path(unquote(value)).expanduser()
        options.append(f"{key}={quote(str(file.resolve()))}" if file.is_file() else pair)
    return "?".join(filter(None, (head, "&".join(options))))


def _absolute(path: Path | None) -> str:
    return str(path.resolve()) if path else ""


def _digest(path: Path) -> str:
    """Names and sizes of a folder's images, or of a file: a lecture of other ones is another lecture."""
    files = find_images([path]) if path.is_dir() else {path.name: path}
    try:
        lines = [f"{name} {file.stat().st_size}" for name, file in files.items()]
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _images_of(folder: Path) -> tuple[str, list[str], str]:
    """The folder, the images to explain, evenly chosen, and a sample of a texture."""
    if not folder.is_dir():
        raise RequestError(f"--images {folder} is no folder; give one with images in it", field="images")
    files = [str(path) for path in find_images([folder]).values()]
    chosen = [files[n * len(files) // _SUBJECTS] for n in range(_SUBJECTS)]
    return str(folder), list(dict.fromkeys(chosen)), files[0]


def _own_images(folder: Path) -> tuple[str, list[str], str]:
    """The same of the photographs, which are copied into the lecture's folder with five views of each."""
    target = folder / _PICTURES
    if not target.is_dir():
        with spinner("copying photographs"), replace_folder(target) as draft:
            for label, name in _PHOTOGRAPHS.items():
                _copy_views(_photograph(name), draft / label, Path(name).stem)
    places = {label: f"{_PICTURES}/{label}/{Path(name).stem}.jpg" for label, name in _PHOTOGRAPHS.items()}
    return _PICTURES, list(places.values())[:_SUBJECTS], places[_TEXTURE]


def _copy_views(photograph: Image.Image, folder: Path, stem: str) -> None:
    folder.mkdir()
    photograph.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    copies = {stem: photograph} | {f"{stem}-{kind}": view for kind, view in views(photograph).items()}
    for name, copy in copies.items():
        data = image.encode_jpeg(np.asarray(copy), quality=92)
        (folder / f"{name}.jpg").write_bytes(data)


def _photograph(name: str) -> Image.Image:
    """A photograph that scikit-image or scikit-learn brings."""
    import sklearn.datasets

    try:
        import skimage
    except ImportError as error:
        raise ConvLensError(
            "the lecture's photographs come with scikit-image: give --images, or pip install 'convlens[demo]'"
        ) from error
    homes = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    return image.read(next(home / name for home in homes if (home / name).is_file())).convert("RGB")
