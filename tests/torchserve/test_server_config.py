"""Reading, changing and writing config.properties."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import asdict, astuple
from pathlib import Path

import pytest

from convlens.errors import ServerError
from convlens.torchserve import server_config
from convlens.torchserve.server_config import Ports


@pytest.mark.parametrize(
    ("text", "pairs"),
    [  # the examples and rules of java.util.Properties.load's documentation
        ("Truth = Beauty", {"Truth": "Beauty"}),
        (" Truth:Beauty", {"Truth": "Beauty"}),
        ("Truth                    :Beauty", {"Truth": "Beauty"}),
        ("fruits   apple, pear, \\\n         cantaloupe, \\\n   mango", {"fruits": "apple, pear, cantaloupe, mango"}),
        ("cheeses", {"cheeses": ""}),
        ("# a comment \\\nkey=1\n! another = 2\n\n", {"key": "1"}),
        ("a\\:b\\=c\\ d=x", {"a:b=c d": "x"}),
        ("path=c\\:\\\\dir\\tend", {"path": "c:\\dir\tend"}),
        ("u=\\u00e4\\u20ac", {"u": "ä€"}),
        ("url=http://127.0.0.1:8080", {"url": "http://127.0.0.1:8080"}),
        ("even=ends in one backslash\\\\\nnext=1", {"even": "ends in one backslash\\", "next": "1"}),
        ("twice=1\r\ntwice=2", {"twice": "2"}),
    ],
)  # fmt: skip
def test_properties_are_read_by_javas_rules(text: str, pairs: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_bytes(text.encode("ascii"))
    assert server_config.read(path) == pairs


@pytest.mark.parametrize(
    "value",
    ["plain", "  leading", "a=b:c#d!e", "back\\slash\\", "tab\tline\nreturn\r", "läuft €", "😀", "", "^$", "\\u0041"],
)
def test_what_is_written_is_read_back_and_is_ascii(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    server_config.write(path, {"key": value, value or "empty": "x"})
    assert path.read_bytes().isascii()
    assert server_config.read(path) == {"key": value, value or "empty": "x"}


def test_an_escape_that_java_would_refuse_is_refused_with_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text("key=\\u12zz\n")
    with pytest.raises(ServerError, match=r"config\.properties: Invalid .u escape sequence: .u12zz"):
        server_config.read(path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.properties"
    path.write_text("# why\ninference_address=http://127.0.0.1:9001\nsome_new_key = kept\ngrpc_inference_port=9004\n")
    return path


def test_the_effective_configuration_has_its_own_ports_and_archives_and_keeps_what_it_does_not_know(base: Path) -> None:
    values = server_config.effective(
        base, ports=Ports(1, 2, 3, 4, 5), model_store=Path("a b"), models={"x": "x.mar", "y": "z.mar"}, auth=False,
        overrides={"job_queue_size": "7"},
    )  # fmt: skip
    assert values == {
        "inference_address": "http://127.0.0.1:1",
        "management_address": "http://127.0.0.1:2",
        "metrics_address": "http://127.0.0.1:3",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": "4",
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": "5",
        "model_store": "a b",
        "load_models": "x=x.mar,y=z.mar",
        "disable_token_authorization": "true",
        "some_new_key": "kept",
        "job_queue_size": "7",
    }


def test_a_files_ports_are_read_and_the_usual_ones_stand_in(base: Path) -> None:
    assert server_config.configured_ports(base) == Ports(9001, 8081, 8082, 9004, 7071)


def test_the_committed_configuration_opens_nothing_to_the_outside() -> None:
    values = server_config.read(server_config.committed())
    addresses = {key: value for key, value in values.items() if key.endswith("_address")}
    assert len(addresses) == 5
    assert all(value.removeprefix("http://").startswith("127.0.0.1") for value in addresses.values())
    assert server_config.configured_ports(server_config.committed()) == Ports()
    assert values["disable_token_authorization"] == values["enable_model_api"] == "false"


def test_free_ports_are_five_that_can_be_listened_on() -> None:
    ports = server_config.free_ports()
    server_config.require_free(ports)
    assert len(set(astuple(ports))) == 5


def free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
            tried.listen()
        except OSError:
            return False
    return True


def test_ports_are_the_usual_ones_where_they_are_free() -> None:
    usual, chosen = asdict(Ports()), asdict(server_config.usual_ports())
    for name, port in usual.items():
        assert (chosen[name] == port) == free(port)


@pytest.mark.parametrize("name", ["inference", "grpc_inference", "metrics"])
def test_where_a_usual_port_is_taken_the_next_free_one_is_chosen_that_is_no_other_s(name: str) -> None:
    usual = asdict(Ports())
    with ExitStack() as held:
        if free(usual[name]):
            held.enter_context(socket.create_server(("127.0.0.1", usual[name])))
        chosen = asdict(server_config.usual_ports())
        between = range(usual[name], chosen[name])
        assert between and not any(free(port) for port in between if port not in {*usual.values(), *chosen.values()})
    assert len(set(chosen.values())) == 5
    assert chosen[name] not in usual.values()


def test_ports_that_are_named_are_taken_and_no_other_door_opens_there() -> None:
    named = {name: port for name, port in asdict(server_config.free_ports()).items() if name != "metrics"}
    named["inference"] = Ports().metrics if free(Ports().metrics) else named["inference"]
    chosen = asdict(server_config.usual_ports(**named))
    assert {name: chosen[name] for name in named} == named
    assert chosen["metrics"] not in named.values()


def test_a_named_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ServerError, match=rf"in use on 127.0.0.1: port metrics {port};"):
            server_config.usual_ports(metrics=port)


def test_a_port_in_use_is_named_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(ServerError, match=rf"in use on 127.0.0.1: port grpc_inference {port};"):
            server_config.require_free(
                Ports(*astuple(server_config.free_ports())[:3], port, server_config.free_ports().management)
            )


def test_one_port_for_two_doors_is_refused() -> None:
    with pytest.raises(ServerError, match="five different ports"):
        server_config.require_free(Ports(inference=8081))


def test_a_port_that_is_none_is_refused_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_text("metrics_address=unix:/tmp/x\n")
    with pytest.raises(ServerError, match="metrics_address=unix:/tmp/x names no port"):
        server_config.configured_ports(path)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"absent\.properties: No such file"):
        server_config.read(tmp_path / "absent.properties")
