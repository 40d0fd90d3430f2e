"""Writes a site: a folder that any static host serves, and that is there whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from convlens import image
from convlens.errors import ConvLensError, RequestError, UnsupportedModelError
from convlens.explain import get
from convlens.explorer.atlas_files import SiteAtlas, write_atlas
from convlens.explorer.description import (
    VERSION,
    describe_colormaps,
    describe_commands,
    describe_graphs,
    describe_methods,
    describe_model,
    describe_preprocessing,
)
from convlens.explorer.gallery_files import open_gallery, write_gallery
from convlens.explorer.graphs import SiteGraphs, export_graphs, is_lattice
from convlens.models import Classifier
from convlens.types import Step, no_op
from convlens.utils.files import replace_folder

MANIFEST = "site.json"
_PAGE = Path(__file__).with_name("page")
_RUNTIME, _SAMPLES = "runtime", "samples"
_SAME_ORIGIN = "connect-src 'self'"
_SAMPLE_QUALITY = 92
# What a browser decodes, and what a page can show.
_CHANNELS = (1, 3)
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:]+\](:[0-9]+)?")


@dataclass(frozen=True)
class Sample:
    """A photograph to begin with; ``credit`` says whose it is."""

    path: Path
    title: str
    credit: str


def write_site(
    classifier: Classifier,
    folder: Path,
    *,
    runtime: Path,
    methods: Sequence[str],
    samples: Sequence[Sample] = (),
    gallery: Path | None = None,
    atlas: SiteAtlas | None = None,
    server: str = "",
    overwrite: bool = False,
    on_step: Callable[[Step], None] = no_op,
) -> None:
    """Write the page, the graphs of these methods, samples, a gallery, an atlas and ``site.json`` into ``folder``.

    ``runtime`` is the folder that ``browser_runtime.RUNTIME.find`` gives. Without methods there are no graphs of any,
    and a ``server`` explains: its address, that of one of its models, or ``/`` for the one that serves the page. With
    an atlas there is the graph of its layers' outputs, by which the page finds an image's strongest units. An earlier
    site is replaced only with ``overwrite``.

    Raises RequestError for a folder of other things and for an atlas of other weights, UnsupportedModelError for a
    network that a page cannot show, that has no classes or that cannot be exported, GalleryError as ``Gallery.open``,
    and for a gallery of other weights.
    """
    require_replaceable(folder, overwrite=overwrite)
    _require_shown(classifier)
    for name in methods:
        get(name)
    if not methods and not server:
        raise RequestError(
            "without methods a page computes nothing; name some, or a server by --server", field="methods"
        )
    origin = server_origin(server)
    if atlas:
        atlas.require_weights(classifier.spec.weights_sha256)
    opened = open_gallery(gallery, weights_sha256=classifier.spec.weights_sha256) if gallery else None
    try:
        with replace_folder(folder) as draft:
            _copy_page(draft, origin)
            shutil.copytree(runtime, draft / _RUNTIME)
            layers = atlas.layers if atlas else ()
            graphs = export_graphs(classifier, methods, draft, layers=layers, on_step=on_step)
            site = {
                **_describe(classifier, methods, graphs, has_gallery=opened is not None),
                "samples": _write_samples(draft, samples),
                "gallery": write_gallery(opened, draft) if opened else None,
                "atlas": write_atlas(atlas, draft) if atlas else None,
                "server": server or None,
            }
            on_step(Step("writing"))
            (draft / MANIFEST).write_text(json.dumps(site, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise ConvLensError(f"{folder} cannot be written ({error}); choose another folder or make room") from error


def read_site(folder: Path) -> dict[str, Any]:
    """What ``site.json`` says; RequestError for a folder that holds no site."""
    try:
        site = json.loads((folder / MANIFEST).read_bytes())
        if site["version"] != VERSION or not isinstance(site["preprocessing"], dict):
            raise KeyError("version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder} holds no site of version {VERSION} ({error!r}); write one by `convlens explore -o {folder}`"
        ) from error
    result: dict[str, Any] = site
    return result


def require_replaceable(folder: Path, *, overwrite: bool) -> None:
    """RequestError unless the folder is missing, empty, or a site that may go."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        read_site(folder)
    except RequestError:
        raise RequestError(f"{folder} holds other things than a site; choose a new folder or empty it") from None
    if not overwrite:
        raise RequestError(f"{folder} holds a site already; replace it by --overwrite, or choose a new folder")


def server_origin(server: str) -> str:
    """The scheme and host of a server's address, which a page may then ask; empty for none and for the page's own.

    RequestError for what is no address over HTTP, and for one with a password, a query or a fragment.
    """
    if server in ("", "/"):
        return ""
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise RequestError(
            f"--server {server} should read like http://127.0.0.1:8080 or https://host/predictions/NAME, or / for the "
            "server that serves the page",
            field="server",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _describe(
    classifier: Classifier, methods: Sequence[str], graphs: SiteGraphs, *, has_gallery: bool
) -> dict[str, Any]:
    lattice = "deconvnet" not in methods and is_lattice(classifier)
    return {
        "version": VERSION,
        "model": describe_model(classifier),
        "preprocessing": describe_preprocessing(classifier.spec),
        "graphs": describe_graphs(graphs.graphs),
        "methods": describe_methods(classifier, graphs, asked=methods, lattice=lattice, has_gallery=has_gallery),
        "colormaps": describe_colormaps(),
        "commands": describe_commands(classifier),
    }


def _require_shown(classifier: Classifier) -> None:
    spec = classifier.spec
    if not spec.classes:
        raise UnsupportedModelError(
            f"the explorer explains classes, and {spec.name} gives embeddings and has none; use `convlens neighbours`, "
            "or `convlens explain --methods occlusion`",
            field="model",
        )
    if spec.channels not in _CHANNELS:
        raise UnsupportedModelError(
            f"a browser reads images of 1 or 3 channels, and {spec.name} takes {spec.channels}; use `convlens explain`",
            field="model",
        )


def _copy_page(draft: Path, origin: str) -> None:
    shutil.copytree(_PAGE, draft, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md"))
    if not origin:
        return
    for page in draft.glob("*.html"):  # whose own policy lets it ask nobody else
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(_SAME_ORIGIN, f"{_SAME_ORIGIN} {origin}"), encoding="utf-8")


def _write_samples(draft: Path, samples: Sequence[Sample]) -> list[dict[str, str]]:
    (draft / _SAMPLES).mkdir()
    return [_write_sample(draft, sample) for sample in samples]


def _write_sample(draft: Path, sample: Sample) -> dict[str, str]:
    file = f"{_SAMPLES}/{sample.path.stem}.jpg"
    pixels_HWC = np.asarray(image.read(sample.path))
    (draft / file).write_bytes(image.encode_jpeg(pixels_HWC, quality=_SAMPLE_QUALITY))
    return {"file": file, "title": sample.title, "credit": sample.credit}
