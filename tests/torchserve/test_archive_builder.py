"""What is in an archive, and when it must be built anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from convlens.errors import ServerError
from convlens.torchserve import archive
from convlens.torchserve.archive import read_manifest
from convlens.torchserve.archive_config import ArchiveOptions


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A packed model, a gallery and a handler, with things among them that must stay outside.

    The package is a copy, so that nobody edits it between two builds of one test.
    """
    package = shutil.copytree(archive.package_folder(), tmp_path / "package" / "convlens")
    monkeypatch.setattr(archive, "package_folder", lambda: package)
    model, gallery = tmp_path / "packed", tmp_path / "views"
    (model / "__pycache__").mkdir(parents=True)
    (gallery / "thumbnails").mkdir(parents=True)
    (model / "model.json").write_text("{}")
    (model / "weights.safetensors").write_bytes(os.urandom(5000))
    (model / "__pycache__" / "net.cpython-311.pyc").write_bytes(b"x")
    (model / ".hidden").write_text("x")
    (gallery / "index.faiss").write_bytes(b"index")
    (gallery / "thumbnails" / "cat.jpg").write_bytes(b"jpeg")
    handler = tmp_path / "some_handler.py"
    handler.write_text("class Handler: ...\n")
    return {"name": "net-1", "model_dir": model, "gallery": gallery, "options": ArchiveOptions(handler=handler)}


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as opened:
        return opened.namelist()


def test_the_archive_holds_handler_model_gallery_package_and_configuration_and_nothing_else(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    path = archive.build(**inputs, store=tmp_path / "store")
    assert path == tmp_path / "store" / "net-1.mar"
    inside = names(path)
    assert inside == sorted(inside, key=lambda name: name.split("/"))
    package = [name for name in inside if name.startswith("convlens/")]
    assert sorted(set(inside) - set(package)) == [
        "MAR-INF/MANIFEST.json",
        "gallery/index.faiss",
        "gallery/thumbnails/cat.jpg",
        "model-config.yaml",
        "model/model.json",
        "model/weights.safetensors",
        "some_handler.py",
    ]
    assert "convlens/torchserve/archive.py" in package
    assert not [name for name in package if "__pycache__" in name or name.endswith((".pyc", ".pkl", ".pt"))]


def test_files_arrive_byte_for_byte(inputs: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(archive.build(**inputs, store=tmp_path)) as opened:
        assert opened.testzip() is None
        assert opened.read("model/weights.safetensors") == (inputs["model_dir"] / "weights.safetensors").read_bytes()


def test_the_manifest_is_the_one_torchserve_reads(inputs: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(archive.build(**inputs, version="2.3", store=tmp_path)) as opened:
        said = json.loads(opened.read("MAR-INF/MANIFEST.json"))
    assert said["runtime"] == "python"
    assert said["model"] == {
        "modelName": "net-1",
        "handler": "some_handler.py",
        "modelVersion": "2.3",
        "configFile": "model-config.yaml",
    }


def archiver(opened: zipfile.ZipFile, folder: Path) -> zipfile.ZipFile:
    """What torch-model-archiver makes of the members of an archive."""
    said = json.loads(opened.read("MAR-INF/MANIFEST.json"))["model"]
    for name in opened.namelist():
        top = name in (said["handler"], said["configFile"])
        opened.extract(name, folder if top or name.startswith("MAR-INF/") else folder / "extra")
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", said["modelName"]]
    command += ["--version", said["modelVersion"], "--handler", str(folder / said["handler"])]
    command += ["--config-file", str(folder / said["configFile"]), "--extra-files", f"{folder / 'extra'}/"]
    (folder / "temp").mkdir()  # the archiver deletes $TMPDIR/<model name> first
    subprocess.run(
        [*command, "--export-path", str(folder)], env={**os.environ, "TMPDIR": str(folder / "temp")}, check=True
    )
    return zipfile.ZipFile(folder / f"{said['modelName']}.mar")


def test_it_is_the_archive_that_torch_model_archiver_makes(inputs: dict[str, Any], tmp_path: Path) -> None:
    """But for the date of its making: all fields of the manifest, all names, all contents."""
    path = archive.build(**inputs, version="2.3", store=tmp_path / "store")
    (tmp_path / "archiver").mkdir()
    with zipfile.ZipFile(path) as ours, archiver(ours, tmp_path / "archiver") as theirs:
        files = {name for name in theirs.namelist() if not name.endswith("/")}
        assert files == set(ours.namelist())
        manifest, wanted = (json.loads(opened.read("MAR-INF/MANIFEST.json")) for opened in (ours, theirs))
        assert manifest.keys() == wanted.keys()
        assert manifest == wanted | {"createdOn": manifest["createdOn"]}
        for name in files - {"MAR-INF/MANIFEST.json"}:
            assert ours.read(name) == theirs.read(name), name


def test_the_same_inputs_give_the_same_bytes_whenever_and_wherever(inputs: dict[str, Any], tmp_path: Path) -> None:
    first = archive.build(**inputs, store=tmp_path / "one").read_bytes()
    later = time.time() + 86_400
    for file in inputs["model_dir"].iterdir():
        os.utime(file, (later, later))
    assert archive.build(**inputs, store=tmp_path / "two").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "one" / "net-1.mar") as opened:
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(opened.read("MAR-INF/MANIFEST.json"))["createdOn"] == "01/01/1980 00:00:00"


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a weight": lambda given: (given["model_dir"] / "weights.safetensors").write_bytes(b"other"),
    "a name": lambda given: (given["model_dir"] / "model.json").rename(given["model_dir"] / "other.json"),
    "the gallery": lambda given: (given["gallery"] / "index.faiss").write_bytes(b"other"),
    "no gallery": lambda given: given.update(gallery=None),
    "the handler": lambda given: given["options"].handler.write_text("class Other: ...\n"),
    "the version": lambda given: given.update(version="1.1"),
    "an option": lambda given: given.update(options=ArchiveOptions(batch_size=3, handler=given["options"].handler)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with(change: str, inputs: dict[str, Any]) -> None:
    before = archive.fingerprint(**inputs)
    assert archive.fingerprint(**inputs) == before
    CHANGES[change](inputs)
    assert archive.fingerprint(**inputs) != before


def test_what_python_caches_is_no_input(inputs: dict[str, Any]) -> None:
    before = archive.fingerprint(**inputs)
    (inputs["model_dir"] / "__pycache__" / "net.cpython-311.pyc").write_bytes(b"another run's")
    assert archive.fingerprint(**inputs) == before


def test_an_archive_is_current_for_its_own_fingerprint_alone(inputs: dict[str, Any], tmp_path: Path) -> None:
    path = archive.build(**inputs, store=tmp_path)
    mark = archive.fingerprint(**inputs)
    assert archive.is_current(path, mark)
    assert not archive.is_current(path, hashlib.sha256(b"other").hexdigest())
    assert not archive.is_current(tmp_path / "absent.mar", mark)
    path.write_bytes(path.read_bytes()[:-200])
    assert not archive.is_current(path, mark)


def test_options_overlay_the_default_configuration(inputs: dict[str, Any], tmp_path: Path) -> None:
    options = ArchiveOptions(
        batch_size=3, max_batch_delay_ms=1, min_workers=2, response_timeout_s=77, device="cpu",
        methods=("saliency",), precision="tf32", section={"budget": 9}, handler=inputs["options"].handler,
    )  # fmt: skip
    config = read_manifest(archive.build(**{**inputs, "options": options}, store=tmp_path)).config
    assert config == {
        "minWorkers": 2, "maxWorkers": 2, "batchSize": 3, "maxBatchDelay": 1, "responseTimeout": 77,
        "startupTimeout": 120, "deviceType": "cpu",
        "convlens": {
            "model": "model", "gallery": "gallery", "graphs": None, "methods": ["saliency"], "sweeps_at": "",
            "precision": "tf32", "budget": 9, "limits": {"bytes": 20 * 2**20, "pixels": 50_000_000},
        },
    }  # fmt: skip


def test_neighbours_are_explained_by_default_only_where_there_is_a_gallery(inputs: dict[str, Any]) -> None:
    def methods(**given: Any) -> list[str]:
        text = archive._recipe("x", given["model_dir"], given["gallery"], None, "1", given["options"]).config
        return list(yaml.safe_load(text)["convlens"]["methods"])

    assert methods(**inputs)[-1] == "neighbours"
    assert "neighbours" not in methods(**{**inputs, "gallery": None})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "two words"}, "model name 'two words'"),
        ({"name": "../up"}, "model name '../up'"),
        ({"name": ""}, "model name ''"),
        ({"name": "-x"}, "the first a letter or digit"),
        ({"model_dir": Path("absent")}, "no folder absent"),
        ({"options": ArchiveOptions(handler=Path("absent.py"))}, "no handler absent.py"),
        ({"options": ArchiveOptions(batch_size=0)}, "batch_size=0: a whole number from 1"),
        ({"options": ArchiveOptions(min_workers=3, max_workers=2)}, "max_workers=2 is below min_workers=3"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(
    given: dict[str, Any], said: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    handler = inputs["options"].handler
    wanted = {**inputs, **given}
    if wanted["options"].handler is None:
        wanted["options"] = ArchiveOptions(**{**vars(wanted["options"]), "handler": handler})
    with pytest.raises(ServerError, match=said):
        archive.build(**wanted, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_pickles_do_not_travel(inputs: dict[str, Any], tmp_path: Path) -> None:
    (inputs["model_dir"] / "weights.pt").write_bytes(b"x")
    with pytest.raises(ServerError, match=r"no pickles.*weights\.pt"):
        archive.build(**inputs, store=tmp_path)


def test_a_failed_build_leaves_the_old_archive_and_no_half_one(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive.build(**inputs, store=tmp_path / "store")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(archive.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="no space"):
        archive.build(**inputs, store=tmp_path / "store")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["net-1.mar"]  # noqa: PTH208


@pytest.mark.parametrize("content", [b"no zip at all", b""])
def test_a_file_that_is_no_archive_is_called_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_bytes(content)
    with pytest.raises(ServerError, match=r"x\.mar is no TorchServe archive"):
        read_manifest(tmp_path / "x.mar")
