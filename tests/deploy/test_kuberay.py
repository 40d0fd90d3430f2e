"""The RayService: each part against its own schema, and all of it against the code that it runs, without a cluster."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_manifests import DEPLOY, ROOT, container, environment, of_kind, quantity

pytest.importorskip("ray.serve", reason="needs Ray Serve")

SERVICE = of_kind("RayService", "kuberay")
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
CONFIG = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
HEAD = CLUSTER["headGroupSpec"]["template"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
PODS = [pytest.param(HEAD, id="head"), pytest.param(WORKERS["template"], id="worker")]

# The fields of KubeRay's ray.io/v1 that are used here, closed: docs.ray.io, "KubeRay CRD API reference".
_START = {"type": "object", "additionalProperties": {"type": "string"}}
_GROUP = {"rayStartParams": _START, "template": {"type": "object"}}
_COUNTS = {name: {"type": "integer", "minimum": 0} for name in ("replicas", "minReplicas", "maxReplicas")}
FIELDS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["serveConfigV2", "rayClusterConfig"],
    "properties": {
        "serveConfigV2": {"type": "string"},
        "rayClusterConfig": {
            "type": "object",
            "additionalProperties": False,
            "required": ["headGroupSpec"],
            "properties": {
                "rayVersion": {"type": "string"},
                "authOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"mode": {"enum": ["disabled", "token"]}},
                },
                "enableInTreeAutoscaling": {"type": "boolean"},
                "headGroupSpec": {"type": "object", "additionalProperties": False, "properties": _GROUP},
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["groupName", "template"],
                        "properties": {**_GROUP, **_COUNTS, "groupName": {"type": "string"}},
                    },
                },
            },
        },
    },
}


def test_the_ray_service_has_kuberay_s_fields() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    jsonschema.validate(SERVICE["spec"], FIELDS)


@pytest.mark.parametrize("template", PODS)
def test_its_pods_obey_kubernetes_schema(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "as-one", **template["metadata"]}}
    kubernetes_validate.validate({**pod, "spec": template["spec"]}, "1.37", strict=True)


def test_its_network_policy_obeys_kubernetes_schema_and_names_ports_there_are() -> None:
    policy = of_kind("NetworkPolicy", "kuberay")
    kubernetes_validate.validate(policy, "1.37", strict=True)
    named = {port["name"] for port in WORKERS["template"]["spec"]["containers"][0]["ports"]}
    asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", ())}
    assert asked == {"serve", "serve-grpc"} <= named
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= template["metadata"]["labels"].items() for template in (HEAD, WORKERS["template"]))


def test_its_serve_config_is_one_that_ray_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(CONFIG)
    usual = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    for key in ("import_path", "route_prefix", "name"):
        assert CONFIG["applications"][0][key] == usual["applications"][0][key]
    assert CONFIG["grpc_options"]["grpc_servicer_functions"] == usual["grpc_options"]["grpc_servicer_functions"]


def test_it_configures_deployments_that_the_application_has() -> None:
    from convlens.rayserve.app import INGRESS
    from convlens.rayserve.server import arguments, ports_of

    args = arguments(CONFIG)
    deployments = {one["name"] for one in CONFIG["applications"][0]["deployments"]}
    assert deployments == {INGRESS, *(f"{name}-{role}" for name in args.archives for role in args.roles)}
    http, grpc = ports_of(CONFIG)
    ports = {port["name"]: port["containerPort"] for port in container(HEAD["spec"], "ray-head")["ports"]}
    assert (ports["serve"], ports["serve-grpc"]) == (http, grpc)


def test_all_replicas_fit_on_the_pods_there_may_be() -> None:
    (application,) = CONFIG["applications"]
    most = {one["name"]: one["autoscaling_config"]["max_replicas"] for one in application["deployments"]}
    wanted = application["args"]["cpus"] * sum(count for name, count in most.items() if name != "ingress")
    worker = container(WORKERS["template"]["spec"], "ray-worker")
    assert wanted <= WORKERS["maxReplicas"] * quantity(worker["resources"]["limits"]["cpu"])


def test_the_version_of_ray_is_the_pinned_one() -> None:
    pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={CLUSTER['rayVersion']}" in pins


@pytest.mark.parametrize("template", PODS)
def test_ray_s_settings_are_those_of_the_command(template: dict[str, Any]) -> None:
    from convlens.rayserve.server import ENVIRONMENT

    assert environment(template["spec"]["containers"][0]) == ENVIRONMENT


@pytest.mark.parametrize("template", PODS)
def test_its_containers_are_locked_down_and_every_mount_has_its_volume(template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    volumes = {volume["name"] for volume in spec["volumes"]}
    for each in spec["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in each["volumeMounts"]} == volumes
