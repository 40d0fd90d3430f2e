"""Where a command finds its server: by what it was given, and by the record in a server's run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convlens.cli.server_address import ServerAddress, find_server
from convlens.client.run_dir import RUN_DIR, ServerRecord, read_record
from convlens.errors import RequestError, ServerError

RECORD = ServerRecord(
    rest="http://127.0.0.1:8083",
    grpc="127.0.0.1:7072",
    metrics="http://127.0.0.1:8084/metrics",
    management="http://127.0.0.1:8085",
    management_grpc="127.0.0.1:7073",
    models=("cats", "cats_sweep"),
    auth=True,
    version="0.1.0",
)
KEY = RUN_DIR / "key_file.json"
ELSEWHERE = "https://elsewhere.example"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a server was started in."""
    (tmp_path / RUN_DIR).mkdir(parents=True)
    RECORD.write(tmp_path / RUN_DIR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_record_is_read_as_it_was_written() -> None:
    assert read_record(RUN_DIR) == RECORD


@pytest.mark.parametrize("url", ["", str(RUN_DIR), RECORD.rest, f"{RECORD.rest}/", "http://localhost:8083"])
def test_the_server_started_here_is_found_with_its_token_and_its_model(url: str) -> None:
    found = find_server(url)
    assert (found.rest.rstrip("/").replace("localhost", "127.0.0.1"), found.model) == (RECORD.rest, "cats")
    assert found.key_file == KEY


def test_its_grpc_address_is_found_too() -> None:
    found = find_server("", asks_grpc=True)
    assert (found.grpc, found.key_file) == (RECORD.grpc, KEY)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"url": ELSEWHERE}, ServerAddress(ELSEWHERE, RECORD.grpc, "convlens", None)),
        (
            {"url": "", "grpc": "elsewhere.example:7070", "asks_grpc": True},
            ServerAddress(RECORD.rest, "elsewhere.example:7070", "convlens", None),
        ),
    ],
)
def test_another_server_gets_neither_this_one_s_token_nor_its_model(
    given: dict[str, object], wanted: ServerAddress
) -> None:
    assert find_server(**given) == wanted  # type: ignore[arg-type]


def test_what_is_given_goes_before_what_is_recorded() -> None:
    found = find_server("", model="dogs", key_file=Path("mine.json"))
    assert (found.model, found.key_file) == ("dogs", Path("mine.json"))


def test_a_server_that_asks_for_no_token_is_sent_none(workplace: Path) -> None:
    record = json.loads((RUN_DIR / "server.json").read_text())
    (RUN_DIR / "server.json").write_text(json.dumps(record | {"auth": False}))
    assert find_server("").key_file is None


def test_without_a_record_the_usual_addresses_are_asked() -> None:
    (RUN_DIR / "server.json").unlink()
    assert find_server("") == ServerAddress("http://127.0.0.1:8080", "127.0.0.1:7070", "convlens", None)


def test_a_folder_without_a_server_is_refused() -> None:
    with pytest.raises(ServerError, match="no server runs in empty"):
        Path("empty").mkdir()
        find_server("empty")


@pytest.mark.parametrize("url", ["localhost", "no/such/folder"])
def test_what_is_neither_folder_nor_address_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="no address like http"):
        find_server(url)


def test_grpc_at_an_address_of_rest_is_refused() -> None:
    with pytest.raises(RequestError, match="by --address"):
        find_server(ELSEWHERE, asks_grpc=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rest": 1}', '{"models": "x"'])
def test_a_damaged_record_is_named(text: str) -> None:
    (RUN_DIR / "server.json").write_text(text)
    with pytest.raises(ServerError, match=r"server\.json is no server's record"):
        find_server("")
