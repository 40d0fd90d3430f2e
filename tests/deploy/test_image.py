"""The Dockerfile and what builds it, as far as that can be tried without ten gigabytes."""

from __future__ import annotations

import importlib.metadata
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
import torch
from kubernetes_manifests import ROOT

from convlens.cli.main import COMMANDS
from convlens.explain.registry import available_methods
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


VARIANTS = ("cuda", "cpu", "onnx")
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def listed(file: str) -> set[str]:
    """The packages of a file of requirements and of those that it names, as they are written."""
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    others = [listed(line.removeprefix("-r ")) for line in lines if line.startswith("-r ")]
    return {line for line in lines if line[:1] not in ("-", "#")}.union(*others)


@EACH_VARIANT
def test_an_image_has_what_serving_needs_and_one_onnx_runtime(variant: str) -> None:
    packages = listed(f"image-{variant}.txt")
    runtimes = {package for package in packages if package.startswith("onnxruntime")}
    assert listed("runtime.txt") | listed("serve.txt") == packages - runtimes - {"onnx", "onnxscript"}
    assert (
        runtimes
        == {
            "cuda": {"onnxruntime-gpu"},
            "cpu": {"onnxruntime"},
            "onnx": {"onnxruntime-gpu", "onnxruntime-gpu[cuda,cudnn]"},
        }[variant]
    )


def test_both_onnx_runtimes_are_pinned_at_one_version() -> None:
    pins = dict(line.split("==") for line in listed("constraints.txt"))
    assert pins["onnxruntime"] == pins["onnxruntime-gpu"]


def test_what_is_removed_was_installed() -> None:
    pinned = {normal(line.split("==")[0]) for line in listed("constraints.txt")}
    assert {normal(name) for name in listed("image-unused-onnx.txt")} <= pinned | {"pip"}


def test_a_server_runs_every_method_without_what_is_removed(tmp_path: Path) -> None:
    removed = {normal(name) for name in listed("image-unused.txt")} - {"pip"}
    modules = [
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if {normal(name) for name in packages} <= removed
    ]
    assert {"matplotlib", "scipy", "sklearn", "pyarrow", "onnx"} <= set(modules)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "serving_alone.py", tmp_path, *modules],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(available_methods())


def normal(name: str) -> str:
    """As package indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_variant_that_is_none_ends_the_build_at_once() -> None:
    (run,) = (line for line in joined() if "image-${VARIANT}.txt" in line)
    check = re.search(r"case .*? esac", run)
    assert check is not None
    for variant in (*VARIANTS, "unused", "gpu", ""):
        command = ["sh", "-c", check.group(0)]
        done = subprocess.run(command, env={"VARIANT": variant}, capture_output=True, text=True, check=False)
        refused = (2, f"error: VARIANT={variant}: one of cuda, cpu, onnx\n")
        assert (done.returncode, done.stderr) == ((0, "") if variant in VARIANTS else refused)


@pytest.fixture(scope="module")
def check_torch() -> ModuleType:
    return script("check_torch")


@pytest.mark.parametrize(
    ("variant", "package", "version", "said"),
    [
        ("cuda", "torch", "2.14.1+cu130", None),
        ("cpu", "torch", "2.14.1+cpu", None),
        ("onnx", "torchvision", "0.29.2+cpu", None),
        ("cuda", "torch", "2.14.1+cpu", "pip found torch 2.14.1+cpu, which is built without CUDA; "),
        ("cpu", "torch", "2.14.1+cu130", "VARIANT=cpu, but pip found torch 2.14.1+cu130, which is built for CUDA; "),
        ("onnx", "torch", "2.14.1+cu130", "add an index that has torch 2.14.1+cpu, such as PyTorch's own of CPU"),
        ("cpu", "torchvision", "0.29.2+cu132", "add an index that has torchvision 0.29.2+cpu, "),
    ],
)
def test_a_torch_of_another_kind_ends_the_build(
    check_torch: ModuleType, variant: str, package: str, version: str, said: str | None
) -> None:
    complaint = check_torch.complaint(variant, package, version)
    assert complaint is None if said is None else said in complaint


def test_the_installed_torch_is_looked_at() -> None:
    fits, other = ("cpu", "cuda") if torch.version.cuda is None else ("cuda", "cpu")
    command = [sys.executable, ROOT / "scripts" / "check_torch.py"]
    assert subprocess.run([*command, fits], check=False, timeout=60).returncode == 0
    done = subprocess.run([*command, other], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: VARIANT={other}, but pip found torch {torch.__version__}, ")


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


def test_a_variant_that_is_none_is_refused_before_anything_is_built(builders: Path) -> None:
    done = image_sh(builders, VARIANT="gpu")
    assert (done.returncode, done.stderr) == (2, "error: VARIANT=gpu: one of cuda, cpu, onnx\n")


@EACH_VARIANT
def test_the_variant_reaches_the_build(builders: Path, variant: str) -> None:
    put(builders, "buildah", 'echo "$@"')
    assert f" --build-arg VARIANT={variant} " in image_sh(builders, VARIANT=variant).stdout


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


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pip_settings() -> ModuleType:
    return script("pip_settings")


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
    assert runs
    for line in runs:
        assert "--mount=type=secret,id=pip_conf,target=/etc/pip.conf" in line
        assert f"--mount=type=secret,id=pip_ca,target={pip_settings.CERTIFICATES}" in line


def test_many_lines_stay_one_value(pip_settings: ModuleType, tmp_path: Path) -> None:
    pip_settings.write("global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'\n", tmp_path)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "extra-index-url='\\nhttps://a.example\\nhttps://b.example'" in said
