"""Where a server finds the declaration of its metrics: it runs in a folder of its own, so the path is absolute."""

from __future__ import annotations

from pathlib import Path

import pytest

from convlens.torchserve import launcher, server_config
from convlens.torchserve.launcher import ServerSettings

OURS = Path(__file__).parents[2] / "handlers" / "metrics.yaml"


def written(folder: Path, base: Path | None, **overrides: str) -> str:
    """``metrics_config`` of the server's own configuration."""
    run_dir = launcher.prepare_run_dir(folder / "run")
    settings = ServerSettings(base=base, overrides=overrides)
    launcher.write_config(run_dir, {}, ports=server_config.Ports(), auth=True, settings=settings)
    return server_config.read(run_dir / "config.properties")["metrics_config"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base" / "mine.properties"
    path.parent.mkdir()
    return path


def test_the_committed_configuration_names_ours(tmp_path: Path) -> None:
    assert written(tmp_path, None) == str(OURS)


def test_a_configuration_that_names_none_gets_ours(tmp_path: Path, base: Path) -> None:
    base.write_text("job_queue_size=3\n")
    assert written(tmp_path, base) == str(OURS)


def test_a_configuration_s_own_is_seen_from_its_folder(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.write_text("metrics_config=conf/mine.yaml\n")
    assert written(tmp_path, base) == str(tmp_path / "base" / "conf" / "mine.yaml")
    monkeypatch.chdir(base.parent)
    assert written(tmp_path, Path(base.name)) == str(tmp_path / "base" / "conf" / "mine.yaml")


def test_what_is_set_for_this_server_goes_before(tmp_path: Path, base: Path) -> None:
    base.write_text("metrics_config=conf/mine.yaml\n")
    assert written(tmp_path, base, metrics_config="/etc/metrics.yaml") == "/etc/metrics.yaml"
