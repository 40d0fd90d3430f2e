"""Archives as Ray serves them: entries, roles, folders, one copy on each machine."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from convlens.errors import ServerError
from convlens.rayserve.archives import load_handler, served_entries, unpacked
from convlens.rayserve.config import ServeArgs, config, roles_of
from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions

HANDLER = "class Handler:\n    def initialize(self, context): pass\n    def handle(self, data, context): return []\n"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds an archive of a handler of three lines."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def build_(name: str = "net", text: str = HANDLER, **options: Any) -> Path:
        handler = tmp_path / "little.py"
        handler.write_text(text)
        made = ArchiveOptions(handler=handler, **options)
        return archive.build(name=name, model_dir=None, store=tmp_path / "store", version="2.0", options=made)

    return build_


def test_an_entry_says_what_its_archive_says(build: Any) -> None:
    (entry,) = served_entries({"mine": str(build(batch_size=4, max_batch_delay_ms=30, response_timeout_s=7))})
    assert (entry.name, entry.version, entry.batch_size) == ("mine", "2.0", 4)
    assert entry.response_timeout_s == 7.0


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_archive_of_two_entries_is_served_as_both_each_by_the_deployments_it_needs(
    build: Any, tmp_path: Path, as_folder: bool
) -> None:
    path = build(sweeps_at="net_sweep")
    if as_folder:
        zipfile.ZipFile(path).extractall(tmp_path / "net")
        path = tmp_path / "net"
    quick, sweep = served_entries({"net": str(path)})
    assert (quick.name, sweep.name) == ("net", "net_sweep")
    every = ServeArgs(archives={"net": str(path)}).roles
    assert roles_of(quick, every) == ("quick",)
    assert roles_of(sweep, every) == ("quick", "sweeps")


def test_a_gallery_adds_a_deployment_and_quick_is_always_there(build: Any) -> None:
    (entry,) = served_entries({"net": str(build(section={"gallery": "gallery"}))})
    assert roles_of(entry, ("sweeps", "neighbours")) == ("quick", "sweeps", "neighbours")
    assert roles_of(entry, ()) == ("quick",)


def test_an_archive_is_unpacked_once_and_anew_when_it_changes(build: Any) -> None:
    (entry,) = served_entries({"net": str(build())})
    folder = unpacked(entry)
    assert (folder / "little.py").read_text() == HANDLER
    (folder / "mark").touch()
    assert (unpacked(entry) / "mark").exists()
    (changed,) = served_entries({"net": str(build(text=HANDLER + "\n# changed\n"))})
    assert unpacked(changed) != folder
    assert not list(folder.parent.glob(".part-*"))


def test_a_missing_archive_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no archive"):
        served_entries({"net": str(tmp_path / "no.mar")})
    with pytest.raises(ServerError, match="is no unpacked archive"):
        served_entries({"net": str(tmp_path)})


def test_a_handler_is_the_only_class_of_its_file(build: Any) -> None:
    (entry,) = served_entries({"net": str(build())})
    assert load_handler(unpacked(entry))().handle([], None) == []
    (entry,) = served_entries({"net": str(build(text=HANDLER + HANDLER.replace("Handler", "Other")))})
    with pytest.raises(ServerError, match="should hold one class"):
        load_handler(unpacked(entry))


def test_a_serve_config_survives_its_file_and_holds_no_token() -> None:
    args = ServeArgs(archives={"net": "/a/net.mar"}, tokens_sha256=("0" * 64,), threads=2)
    described = yaml.safe_load(yaml.safe_dump(config(args, host="127.0.0.1", port=1, grpc_port=2)))
    (application,) = described["applications"]
    assert ServeArgs.model_validate(application["args"]) == args
    assert described["http_options"] == {"host": "127.0.0.1", "port": 1}


def test_the_committed_serve_config_is_accepted_by_serve_and_by_the_application() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="the optional package ray[serve]")
    described = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml").read_text())
    (application,) = schema.ServeDeploySchema.model_validate(described).applications
    args = ServeArgs.model_validate(application.args)
    made = config(args, host="127.0.0.1", port=8080, grpc_port=7070)
    assert {name: described[name] for name in ("http_options", "grpc_options")} == {
        name: made[name] for name in ("http_options", "grpc_options")
    }
    assert application.import_path == made["applications"][0]["import_path"]
    (name,) = args.archives
    known = {"ingress", "metrics", *(f"{name}-{role}" for role in args.roles)}
    assert {deployment.name for deployment in application.deployments} <= known
