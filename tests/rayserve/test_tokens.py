"""Tokens: the cluster knows digests alone."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from convlens.rayserve.tokens import TokenCheck, write_key_file

DIGEST = hashlib.sha256(b"open sesame").hexdigest()


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("Bearer open sesame", True),
        ("bearer open sesame", True),
        ("Bearer open sesam", False),
        ("Basic open sesame", False),
        (f"Bearer {DIGEST}", False),
        ("Bearer ", False),
        ("", False),
    ],
)
def test_only_a_bearer_of_a_known_token_is_let_in(header: str, allowed: bool) -> None:
    assert TokenCheck(["0" * 64, DIGEST]).allows(header) is allowed


def test_without_tokens_everybody_is_let_in() -> None:
    assert TokenCheck([]).allows("")


def test_a_file_of_digests_is_read_again_when_it_changes_and_lets_nobody_in_when_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    check = TokenCheck([], str(file))
    assert not check.allows("Bearer open sesame")
    file.write_text(f"# of one client\n{DIGEST}\n")
    assert check.allows("Bearer open sesame")
    file.write_text("0" * 64)
    os.utime(file, ns=(1, 1))  # a clock of seconds would not show a change within one
    assert not check.allows("Bearer open sesame")
    file.unlink()
    assert not check.allows("Bearer open sesame")


def test_a_key_file_holds_a_new_token_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    digests = [write_key_file(path) for _ in range(2)]
    assert digests[0] != digests[1]
    token = json.loads(path.read_text())["inference"]["key"]
    assert hashlib.sha256(token.encode()).hexdigest() == digests[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
