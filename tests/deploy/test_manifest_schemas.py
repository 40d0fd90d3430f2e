"""Every manifest against its schema, without a cluster: the built-in kinds by Kubernetes' own, the others by theirs."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_manifests import DEPLOY, documents, of_kind

VERSIONS = ("1.30", "1.37")  # the oldest and the newest that the pinned validator and this repository know
BUILT_IN = [
    pytest.param(document, id=f"{path.parent.name}/{path.name}:{document['kind']}")
    for path in sorted(DEPLOY.glob("kubernetes/*.yaml"))
    for document in documents(path)
    if document.get("kind") not in (None, "Kustomization", "ServiceMonitor")
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", BUILT_IN)
def test_built_in_kinds_obey_kubernetes_schema(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_does_find_what_is_wrong() -> None:
    broken = copy.deepcopy(of_kind("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["resorces"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resorces"):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


# What KServe's v1beta1 predictor has beside the fields of a PodSpec, of those that are used here. A wheel of its Python
# models would check no more: they take any value.
PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer"},
    "timeout": {"type": "integer"},
}


def test_the_inference_service_is_kserve_s_fields_around_a_pod() -> None:
    document = of_kind("InferenceService", "kserve")
    assert document["apiVersion"] == "serving.kserve.io/v1beta1"
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"} and set(document["spec"]) == {"predictor"}
    predictor = document["spec"]["predictor"]
    jsonschema.validate({key: predictor[key] for key in predictor if key in PREDICTOR}, {"properties": PREDICTOR})
    pod = {key: value for key, value in predictor.items() if key not in PREDICTOR}
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "as-one"}, "spec": pod}, VERSIONS[-1], strict=True
    )
    # KServe looks for a container of this name first, and sends requests to the first port of the first container.
    assert predictor["containers"][0]["name"] == "kserve-container"
    assert len(predictor["containers"][0]["ports"]) == 1


# The part of the operator's v1 CRD that is used here; its fields are closed, so a slip of the pen shows.
SERVICE_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "endpoints"],
    "properties": {
        "selector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
        },
        "endpoints": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string"},
                    "interval": {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                    "scrapeTimeout": {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                },
            },
        },
    },
}


def test_the_service_monitor_obeys_the_operator_s_fields() -> None:
    document = of_kind("ServiceMonitor")
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    jsonschema.validate(document["spec"], SERVICE_MONITOR)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")
@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-gpu", "kserve"])
def test_kustomize_puts_together_what_kubernetes_takes(folder: str) -> None:
    rendered = kustomized(DEPLOY / folder)
    for document in rendered:
        if "kserve" not in document["apiVersion"]:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (config_map,) = (one for one in rendered if one["kind"] == "ConfigMap")
    for name in ("nginx.conf", "start.sh", "help.html", "help.css"):
        assert config_map["data"][name] == (DEPLOY / "proxy" / name).read_text(encoding="utf-8")
    # Its name carries a digest, which the pods must know it by.
    assert config_map["metadata"]["name"] != "convlens-proxy"
    assert yaml.safe_dump(rendered).count(f"name: {config_map['metadata']['name']}\n") == 2


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")
def test_the_overlay_adds_a_gpu_and_changes_nothing_else_of_the_container() -> None:
    plain, gpu = (server_of(kustomized(DEPLOY / folder)) for folder in ("kubernetes", "kubernetes-gpu"))
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {**gpu, "resources": None} == {**plain, "resources": None}


def kustomized(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    return list(yaml.safe_load_all(done.stdout))


def server_of(rendered: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = (one for one in rendered if one["kind"] == "Deployment")
    (found,) = (one for one in deployment["spec"]["template"]["spec"]["containers"] if one["name"] == "convlens")
    return dict(found)
