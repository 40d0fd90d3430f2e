"""The services of deploy/compose, beside what the image, the proxy and the manifests of Kubernetes say."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from kubernetes_manifests import DEPLOY, ROOT, container, pods

from convlens.torchserve import server_config

FOLDER = DEPLOY / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
START = (DEPLOY / "proxy" / "start.sh").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EACH_SERVICE = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@EACH_SERVICE
def test_each_container_runs_as_the_image_s_user_and_writes_to_volumes_alone(service: dict[str, Any]) -> None:
    assert f"USER {service['user']}\n" in DOCKERFILE
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]


@EACH_SERVICE
def test_no_token_or_key_stands_in_the_environment(service: dict[str, Any]) -> None:
    assert not [name for name in service["environment"] if re.search("TOKEN|KEY|SECRET|PASSWORD", name)]


def test_secrets_lie_where_the_proxy_looks_for_them() -> None:
    usual = dict(re.findall(r"\$\{PROXY_(TLS|CLIENTS):-([^}]+)\}", START))
    targets = {secret["source"]: secret["target"] for secret in SERVICES["proxy"]["secrets"]}
    assert targets == {
        "clients": usual["CLIENTS"],
        "certificate": f"{usual['TLS']}/tls.crt",
        "key": f"{usual['TLS']}/tls.key",
    }
    assert set(COMPOSE["secrets"]) == set(targets)


def test_files_of_secrets_are_never_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for secret in COMPOSE["secrets"].values():
        path = f"/deploy/compose/{secret['file']}"
        assert path in ignored or f"{path.rpartition('.')[0]}.*" in ignored


def test_the_proxy_reads_the_server_s_token_and_cannot_change_it() -> None:
    (folder,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert SERVICES["convlens"]["volumes"] == [f"run:{folder}"]
    assert f"run:{folder}:ro" in SERVICES["proxy"]["volumes"]
    assert f"${{CONVLENS_KEY_FILE:-{folder}/key_file.json}}" in START


def test_the_server_is_reached_through_the_proxy_alone() -> None:
    server, proxy = SERVICES["convlens"], SERVICES["proxy"]
    assert server["environment"]["CONVLENS_HOST"] == server_config.LOOPBACK
    assert proxy["network_mode"] == "service:convlens"
    assert "ports" not in proxy
    assert server["ports"] == [f"127.0.0.1:{port}:{port}" for port in [proxy["environment"]["PROXY_LISTEN"]]]


def test_the_proxy_is_that_of_the_manifests() -> None:
    described, proxy = container(pods()["kubernetes"], "proxy"), SERVICES["proxy"]
    assert (proxy["image"], proxy["command"]) == (described["image"], described["command"])
    assert set(proxy["environment"]) == {one["name"] for one in described["env"]}


def test_the_server_is_killed_only_after_its_drain() -> None:
    for service, waits_s in {"convlens": SERVICES["convlens"]["environment"]["CONVLENS_DRAIN_S"], "proxy": 120}.items():
        assert int(SERVICES[service]["stop_grace_period"].removesuffix("s")) >= int(waits_s) + 20
    assert SERVICES["proxy"]["depends_on"] == ["convlens"], "what depends is stopped first"
