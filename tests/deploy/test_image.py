"""The Dockerfile and what builds it, as far as that can be tried without ten gigabytes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kubernetes_manifests import ROOT

from convlens.cli.main import COMMANDS
from convlens.torchserve import server_config

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE_SH = ROOT / "scripts" / "image.sh"


def joined() -> list[str]:
    """Instructions, each on one line."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", "").splitlines() if line.strip()]


def arguments(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in joined() if line.split()[0] == instruction]


def test_what_is_copied_is_there_and_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = {name for words in arguments("COPY") if "--from=build" not in words for name in words[:-1]}
    assert copied == let_in
    for name in copied:
        assert (ROOT / name).exists()


def test_only_what_serving_needs_is_installed() -> None:
    asked = set(re.findall(r"-r requirements/(\w+)\.txt", DOCKERFILE))
    assert asked == {"runtime", "serve", "onnx"}


def test_its_user_is_a_number_and_not_root() -> None:
    ((user,),) = arguments("USER")
    assert int(user.split(":")[0]) > 0


def test_the_health_check_asks_with_the_token_that_the_server_writes() -> None:
    (line,) = (line for line in joined() if line.startswith("HEALTHCHECK"))
    command = line.split("CMD ")[1]
    assert command.startswith("python -m convlens.torchserve.health ")
    environment = {"CONVLENS_NAME": "net", "CONVLENS_RUN_DIR": "/nowhere", "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False, timeout=60)  # noqa: S602
    assert done.returncode == 1
    assert done.stderr.startswith("net: cannot read /nowhere/key_file.json")


def test_its_commands_and_modules_are_there() -> None:
    (entry,) = (line for line in joined() if line.startswith("ENTRYPOINT"))
    module = re.search(r'"-m", "([\w.]+)"', entry)
    assert module is not None and importlib.util.find_spec(module.group(1)) is not None
    assert re.findall(r"bin/convlens (\w+)", DOCKERFILE) == ["archive"]
    assert "archive" in COMMANDS


def test_its_token_outlives_a_day(tmp_path: Path) -> None:
    """The expression that the build runs, on the file that it runs it on."""
    expression = re.search(r"sed '([^']+)' config\.properties", DOCKERFILE)
    assert expression is not None
    text = subprocess.run(
        ["sed", expression.group(1), server_config.committed()], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    changed = tmp_path / "container.properties"
    changed.write_text(text)
    before, after = server_config.read(server_config.committed()), server_config.read(changed)
    assert {key for key in after if after[key] != before[key]} == {"token_expiration_min"}
    assert int(after["token_expiration_min"]) > 366 * 24 * 60


@pytest.fixture
def builders(tmp_path: Path) -> Path:
    """A PATH with the tools that the script uses, and no builder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dirname", "mktemp", "rm", "python3", "cat"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def image_sh(path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": str(path), "HOME": str(path), "PYTHON": sys.executable} | environment
    return subprocess.run(
        [IMAGE_SH, *options], env=given, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip


def put(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_without_a_builder_it_says_what_to_install(builders: Path) -> None:
    done = image_sh(builders)
    assert done.returncode == 2
    assert (
        done.stderr == "error: none of docker (running, with buildx), podman, buildah works here; install one of them\n"
    )


def test_a_builder_that_is_none_is_refused(builders: Path) -> None:
    assert "one of docker, podman, buildah" in image_sh(builders, BUILDER="kaniko").stderr
    assert "podman is not installed" in image_sh(builders, BUILDER="podman").stderr


@pytest.mark.parametrize("missing", ["info", "buildx"])
def test_a_docker_without_its_service_or_without_buildx_is_passed_over(builders: Path, missing: str) -> None:
    put(builders, "docker", f"[ $1 != {missing} ]")
    put(builders, "buildah", 'echo "$@"')
    done = image_sh(
        builders, "--isolation", "chroot", BASE_IMAGE="localhost/base", NAME="net", VOLUMES="/a:/a:ro /b:/b:ro"
    )
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("build --format docker --file Dockerfile --tag convlens:latest --isolation chroot --secret ")
    for part in (
        "--build-arg BASE_IMAGE=localhost/base",
        "--build-arg NAME=net",
        "--volume /a:/a:ro",
        "--volume /b:/b:ro",
    ):
        assert part in line
    assert "MODEL" not in line
    assert line.endswith(" .")


def test_the_secrets_are_there_during_the_build_and_gone_after_it(builders: Path) -> None:
    put(
        builders,
        "buildah",
        'for word in "$@"; do case $word in id=*) cat "${word#*src=}"; echo "${word#*src=}" >&2;; esac; done',
    )
    done = image_sh(builders, PIP_INDEX_URL="https://mirror.example/simple")
    assert "index-url = https://mirror.example/simple" in done.stdout
    sources = done.stderr.split()
    assert [Path(source).name for source in sources] == ["pip.conf", "ca.crt"]
    assert not any(Path(source).exists() for source in sources)


@pytest.fixture(scope="module")
def pip_settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pip_settings", ROOT / "scripts" / "pip_settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pip_reads_the_settings_as_they_were(pip_settings: ModuleType, tmp_path: Path) -> None:
    """What pip says of the written file is what it said of the environment."""
    authorities = tmp_path / "authorities"
    authorities.write_text("certificates")
    given = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_INDEX_URL": "https://mirror.example/simple",
        "PIP_FIND_LINKS": "/one /two",
        "PIP_CERT": str(authorities),
        "PIP_CACHE_DIR": "/our/own",
    }
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout
    pip_settings.write(listed, tmp_path)
    seen = {"PATH": given["PATH"], "HOME": str(tmp_path / "nobody"), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    said = subprocess.run(command, env=seen, capture_output=True, text=True, check=True).stdout
    assert "index-url='https://mirror.example/simple'" in said
    assert "find-links='/one /two'" in said
    assert f"cert='{pip_settings.CERTIFICATES}'" in said
    assert "/our/own" not in said
    assert (tmp_path / "ca.crt").read_text() == "certificates"


def test_the_dockerfile_mounts_both_where_pip_looks(pip_settings: ModuleType) -> None:
    runs = [line for line in joined() if " -m pip install" in line]
    assert len(runs) == 2
    for line in runs:
        assert "--mount=type=secret,id=pip_conf,target=/etc/pip.conf" in line
        assert f"--mount=type=secret,id=pip_ca,target={pip_settings.CERTIFICATES}" in line


def test_many_lines_stay_one_value(pip_settings: ModuleType, tmp_path: Path) -> None:
    pip_settings.write("global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'\n", tmp_path)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "extra-index-url='\\nhttps://a.example\\nhttps://b.example'" in said
