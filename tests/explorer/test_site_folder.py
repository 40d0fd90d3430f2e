"""A site's folder: there whole or not at all, and never in place of anything else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import own_networks
import pytest
from explorer_sites import browser_runtime, described, network, site_without_graphs
from PIL import Image
from typer.testing import CliRunner, Result

import convlens
from convlens.cli.main import build
from convlens.errors import GalleryError, RequestError, UnsupportedModelError
from convlens.explorer.site import write_site
from convlens.models import Classifier

KILLED_AT_THE_END = """
import os, signal, sys
from pathlib import Path
import convlens
from convlens.explorer.site import write_site

model, folder, runtime = sys.argv[1:]
kill = lambda step: os.kill(os.getpid(), signal.SIGKILL)
classifier = convlens.load(model, device="cpu")
write_site(classifier, Path(folder), runtime=Path(runtime), methods=[], server="/", overwrite=True, on_step=kill)
"""
OWN = f"file:{own_networks.__file__}"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return network(tmp_path_factory.mktemp("net"))


def explore(*arguments: object) -> Result:
    given = ["explore", *map(str, arguments)]
    return CliRunner().invoke(build(given), given)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_that_is_killed_leaves_what_was_there(tmp_path: Path, classifier: Classifier, earlier: bool) -> None:
    folder = tmp_path / "site"
    if earlier:
        site_without_graphs(classifier, folder, server="https://earlier.example")
    arguments = [classifier.source, folder, browser_runtime()]
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_END, *map(str, arguments)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.exists() == earlier
    if earlier:
        assert described(folder)["server"] == "https://earlier.example"
    assert site_without_graphs(classifier, folder, overwrite=True)["server"] == "/"


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path, classifier: Classifier) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="other things"):
        site_without_graphs(classifier, tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_site_is_replaced_only_when_that_is_asked_for(tmp_path: Path, classifier: Classifier) -> None:
    folder = tmp_path / "site"
    site_without_graphs(classifier, folder)
    with pytest.raises(RequestError, match="--overwrite"):
        site_without_graphs(classifier, folder, server="https://later.example")
    assert described(folder)["server"] == "/"
    site_without_graphs(classifier, folder, server="https://later.example", overwrite=True)
    assert described(folder)["server"] == "https://later.example"


@pytest.mark.parametrize("server", ["https://host.example:8443/predictions/cats", "http://[::1]:8080", "http://h/"])
def test_the_page_may_ask_its_server_and_nobody_else(tmp_path: Path, classifier: Classifier, server: str) -> None:
    site = site_without_graphs(classifier, tmp_path / "site", server=server)
    assert site["server"] == server
    origin = server.split("/predictions")[0].rstrip("/")
    for page in (tmp_path / "site").glob("*.html"):
        for policy in re.findall('connect-src [^;"]*', page.read_text(encoding="utf-8")):
            assert policy == f"connect-src 'self' {origin}"


@pytest.mark.parametrize(
    "server",
    ["host", "ftp://host", "http://", "http://me:secret@host", "http://host?token=x", "http://a;script-src *", "//h"],
)
def test_what_is_no_server_s_address_is_refused(tmp_path: Path, classifier: Classifier, server: str) -> None:
    with pytest.raises(RequestError, match="should read like"):
        site_without_graphs(classifier, tmp_path / "site", server=server)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("factory", "options", "reason"),
    [
        ("features", "size=32&resize=32", "has none"),
        ("six_channels", "size=32&resize=32&channels=6&mean=.5&std=.25", "1 or 3 channels"),
    ],
)
def test_a_network_that_a_page_cannot_show_is_refused(tmp_path: Path, factory: str, options: str, reason: str) -> None:
    classifier = convlens.load(f"{OWN}:{factory}?{options}", device="cpu")
    with pytest.raises(UnsupportedModelError, match=reason):
        site_without_graphs(classifier, tmp_path / "site")


@pytest.mark.parametrize(("factory", "channels"), [("binary_grey", 1), ("multi_label", 3)])
def test_labels_that_do_not_exclude_each_other_come_with_a_sigmoid(tmp_path: Path, factory: str, channels: int) -> None:
    classifier = convlens.load(f"{OWN}:{factory}?size=32&resize=32&mean=.5&std=.25", device="cpu")
    site = site_without_graphs(classifier, tmp_path / "site")
    assert site["model"]["activation"] == "sigmoid"
    assert site["preprocessing"]["mean"] == [0.5] * channels
    assert site["preprocessing"]["channels"] == channels


def test_a_gallery_of_other_weights_is_refused(tmp_path: Path, classifier: Classifier) -> None:
    other = convlens.load(f"{OWN}:rectangle?size=24x32&resize=24x32&crop_mode=squash", device="cpu")
    views = [(colour, "", Image.new("RGB", (40, 30), colour)) for colour in ("red", "green", "blue")]
    convlens.gallery.build_from(views, tmp_path / "gallery", other)
    with pytest.raises(GalleryError, match="weights"):
        site_without_graphs(classifier, tmp_path / "site", gallery=tmp_path / "gallery")


def test_without_methods_and_without_a_server_there_is_nothing_to_show(tmp_path: Path, classifier: Classifier) -> None:
    with pytest.raises(RequestError, match="--server"):
        write_site(classifier, tmp_path / "site", runtime=browser_runtime(), methods=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rise"], "a server does that"),
        (["--methods", "salience"], "did you mean saliency"),
        (["--server", "host"], "should read like"),
        (["--serve", "nowhere"], "holds no site"),
        (["--serve", "nowhere", "-o", "site"], "leave"),
        (["--serve", "nowhere", "--atlas", "atlas"], "leave"),
        (["--atlas", "nowhere"], "nowhere holds no finished atlas"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVLENS_CACHE", str(browser_runtime().parent.parent))
    result = explore("file:never.py:loaded", *arguments)
    assert isinstance(result.exception, RequestError)
    assert message in result.exception.message


def test_the_command_writes_a_site_and_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(browser_runtime().parent.parent))
    model, folder = network(tmp_path).source, tmp_path / "site"
    result = explore(model, "--methods", "none", "--server", "/", "-o", folder)
    assert result.exit_code == 0, result.output
    assert f"convlens explore --serve {folder}" in result.output
    assert [sample["title"] for sample in described(folder)["samples"]][:2] == ["cat", "espresso"]
