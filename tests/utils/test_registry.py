"""Files are found, not listed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convlens.errors import ModelError, RequestError
from convlens.utils.registry import Registry

METHOD = "import {package}\n{package}.registry.add({name!r}, {value})\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of plug-ins: ``oak`` and ``elm`` are registered by files of other names."""
    folder = tmp_path / "trees_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def registry_of(package: Path, **options: str) -> Registry[int]:
    """Registers where its plug-ins look for it: in the package."""
    (package / "__init__.py").write_text(
        "from convlens.errors import RequestError\nfrom convlens.utils.registry import Registry\n"
        f"registry = Registry(__name__, noun='tree', error=RequestError, **{options})\n"
    )
    module = __import__(package.name)
    registry: Registry[int] = module.registry
    return registry


def plug_in(package: Path, file: str, name: str, value: int) -> None:
    (package / f"{file}.py").write_text(METHOD.format(package=package.name, name=name, value=value))


def test_every_file_is_found_and_names_are_sorted(package: Path) -> None:
    plug_in(package, "leafy", "oak", 1)
    plug_in(package, "bare", "elm", 2)
    registry = registry_of(package)
    assert registry.names() == ("elm", "oak")
    assert (registry.get("oak"), registry.get("elm")) == (1, 2)


def test_an_unknown_name_is_refused_with_near_ones_and_all_there_are(package: Path) -> None:
    plug_in(package, "leafy", "oak", 1)
    registry = registry_of(package, field="tree")
    with pytest.raises(RequestError, match=r"^no tree 'oat'; did you mean oak\?; there are: oak$") as caught:
        registry.get("oat")
    assert caught.value.field == "tree"


def test_with_a_suffix_a_file_is_imported_only_when_its_name_is_looked_up(package: Path) -> None:
    plug_in(package, "oak_", "oak", 1)
    (package / "elm_.py").write_text("1 / 0\n")
    (package / "tools.py").write_text("1 / 0\n")
    registry = registry_of(package, suffix="_")
    assert registry.names() == ("elm", "oak")
    assert registry.get("oak") == 1
    with pytest.raises(ZeroDivisionError):
        registry.get("elm")


def test_a_package_that_does_not_exist_is_an_error_of_python() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry[int]("no.such.package", noun="tree", error=ModelError).names()
