"""What the manifests, the image and the proxy say about each other and about the code."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import yaml
from kubernetes_manifests import DEPLOY, ROOT, container, environment, of_kind, pods, quantity

from convlens.torchserve import health, server_config
from convlens.torchserve.archive_config import ArchiveOptions, model_config

PORTS = server_config.configured_ports(server_config.committed())
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
NGINX = (DEPLOY / "proxy" / "nginx.conf").read_text(encoding="utf-8")
START = (DEPLOY / "proxy" / "start.sh").read_text(encoding="utf-8")
FOREGROUND = (ROOT / "convlens" / "torchserve" / "container.py").read_text(encoding="utf-8")

# Seconds that TorchServe and its workers are given to end, each (server.stop's grace).
STOP_S = 2 * 10
# MiB at most, of two workers and Java after 400 requests of all kinds by 16 clients (docs/serving.md).
MEASURED_MIB = 1198 + 1129 + 562 + 25

POD = pytest.mark.parametrize("pod", pods().values(), ids=pods())


def test_the_image_exposes_what_clients_and_prometheus_need() -> None:
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    assert sorted(map(int, exposed.group(1).split())) == sorted([PORTS.inference, PORTS.grpc_inference, PORTS.metrics])


def test_the_proxy_asks_where_the_server_listens() -> None:
    for name, port in {
        "REST": PORTS.inference,
        "GRPC": PORTS.grpc_inference,
        "TORCHSERVE_METRICS": PORTS.metrics,
    }.items():
        assert f"${{PROXY_{name}:-127.0.0.1:{port}}}" in START


@POD
def test_the_proxy_listens_where_the_pod_says(pod: dict[str, Any]) -> None:
    proxy = pod["containers"][0] if pod["containers"][0]["name"] == "kserve-container" else container(pod, "proxy")
    told = environment(proxy)
    ports = {str(one["containerPort"]) for one in proxy["ports"]}
    assert told["PROXY_LISTEN"] in ports
    assert ports <= {told["PROXY_LISTEN"], told["PROXY_METRICS"]}
    taken = {PORTS.inference, PORTS.management, PORTS.metrics, PORTS.grpc_inference, PORTS.grpc_management}
    assert not taken & {int(told["PROXY_LISTEN"]), int(told["PROXY_METRICS"])}, "the server's, on the pod's loopback"


def test_services_and_the_network_policy_name_ports_there_are() -> None:
    names = {one["name"] for one in container(pods()["kubernetes"], "proxy")["ports"]}
    text = (DEPLOY / "kubernetes" / "service.yaml").read_text(encoding="utf-8")
    targets = {port["targetPort"] for one in yaml.safe_load_all(text) for port in one["spec"]["ports"]}
    rules = of_kind("NetworkPolicy")["spec"]["ingress"]
    assert targets == names == {port["port"] for rule in rules for port in rule["ports"]}
    assert of_kind("NetworkPolicy")["spec"]["egress"] == []


@POD
@pytest.mark.parametrize("kind", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_run_what_there_is(pod: dict[str, Any], kind: str) -> None:
    described = container(pod, "convlens")[kind]
    command = described["exec"]["command"]
    assert command[:3] == ["python", "-m", "convlens.torchserve.health"]
    assert importlib.util.find_spec(command[2]) is not None
    # An address where nobody listens: options that the probe does not know would end with code 2 instead.
    assert health.main([*command[3:], "--url", "http://127.0.0.1:9", "--timeout", "0.2"]) == 1
    assert float(command[command.index("--timeout") + 1]) < described["timeoutSeconds"]


@POD
def test_names_of_the_environment_are_read(pod: dict[str, Any]) -> None:
    for one in pod["containers"]:
        for name in environment(one):
            if name.startswith("PROXY_"):
                assert f"${{{name}:-" in START
            elif name.startswith("CONVLENS_"):
                assert f'"{name}"' in FOREGROUND


@POD
def test_the_time_to_end_is_enough_for_what_happens_in_it(pod: dict[str, Any]) -> None:
    told = environment(container(pod, "convlens"))
    linger_s, drain_s = float(told["CONVLENS_LINGER_S"]), float(told["CONVLENS_DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] > linger_s + drain_s + STOP_S
    proxy = pod["containers"][0] if "lifecycle" in pod["containers"][0] else container(pod, "proxy")
    pause_s = float(proxy["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert linger_s > pause_s, "the server must serve on until the proxy takes nothing new"
    response_s = yaml.safe_load(model_config(ArchiveOptions(), gallery=None))["responseTimeout"]
    assert drain_s >= response_s


def test_the_proxy_waits_longer_than_torchserve() -> None:
    response_s = yaml.safe_load(model_config(ArchiveOptions(), gallery=None))["responseTimeout"]
    for name in ("proxy_read_timeout", "grpc_read_timeout", "worker_shutdown_timeout"):
        found = re.search(rf"{name}\s+(\d+)s;", NGINX)
        assert found is not None and int(found.group(1)) > response_s


def test_the_proxy_s_limit_of_bytes_is_torchserve_s() -> None:
    found = re.search(r"client_max_body_size (\d+)m;", NGINX)
    assert found is not None
    assert int(found.group(1)) * 2**20 == int(server_config.read(server_config.committed())["max_request_size"])


@POD
def test_memory_is_what_was_measured_and_a_little_more(pod: dict[str, Any]) -> None:
    resources = container(pod, "convlens")["resources"]
    assert quantity(resources["requests"]["memory"]) >= MEASURED_MIB * 2**20
    assert quantity(resources["limits"]["memory"]) >= 1.3 * MEASURED_MIB * 2**20


@POD
def test_every_container_is_locked_down(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for one in pod["containers"]:
        locked = one["securityContext"]
        assert locked["readOnlyRootFilesystem"] is True and locked["allowPrivilegeEscalation"] is False
        assert locked["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"] and one["resources"]["requests"]["memory"]


@POD
def test_the_server_listens_on_the_pod_s_loopback_address_alone(pod: dict[str, Any]) -> None:
    assert environment(container(pod, "convlens"))["CONVLENS_HOST"] == server_config.LOOPBACK
    assert "ports" not in container(pod, "convlens")


@POD
def test_one_user_so_that_the_proxy_may_read_the_token(pod: dict[str, Any]) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user.group(1)), int(user.group(2)))
    assert not any("runAsUser" in one["securityContext"] for one in pod["containers"])


@POD
def test_every_mount_has_its_volume(pod: dict[str, Any]) -> None:
    volumes = {one["name"] for one in pod["volumes"]}
    assert volumes == {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}


def test_the_autoscaler_scales_by_a_metric_the_adapter_makes_from_declared_ones() -> None:
    (metric,) = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    rules = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = rules["rules"]["custom"]
    assert metric["type"] == "Pods", "no schema says which types there are"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    declared = yaml.safe_load((ROOT / "handlers" / "metrics.yaml").read_text(encoding="utf-8"))
    names = {one["name"] for one in declared["ts_metrics"]["counter"]}
    used = set(re.findall(r"\b(ts_\w+)\{", rule["metricsQuery"] + rule["seriesQuery"]))
    assert used == {"ts_queue_latency_microseconds", "ts_inference_requests_total"}
    assert used <= names
    target_s = quantity(metric["pods"]["target"]["averageValue"])
    delay_s = yaml.safe_load(model_config(ArchiveOptions(), gallery=None))["maxBatchDelay"] / 1e3
    assert target_s == pytest.approx(10 * delay_s), "what the comment beside it says"


def test_kserve_s_pod_is_the_deployment_s() -> None:
    plain, kserve = pods()["kubernetes"], pods()["kserve"]
    ours, theirs = container(plain, "convlens"), container(kserve, "convlens")
    for key in ("env", "startupProbe", "readinessProbe", "livenessProbe", "securityContext", "volumeMounts"):
        assert ours[key] == theirs[key]
    assert container(plain, "proxy")["image"] == kserve["containers"][0]["image"]
