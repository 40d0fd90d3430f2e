"""The manifests of deploy/, read as Kubernetes would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def of_kind(kind: str, folder: str = "kubernetes") -> dict[str, Any]:
    found = [
        one for path in sorted((DEPLOY / folder).glob("*.yaml")) for one in documents(path) if one.get("kind") == kind
    ]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def pods() -> dict[str, dict[str, Any]]:
    """The two descriptions of a pod; what both say alike is tested alike."""
    return {
        "kubernetes": of_kind("Deployment")["spec"]["template"]["spec"],
        "kserve": of_kind("InferenceService", "kserve")["spec"]["predictor"],
    }


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in pod["containers"] if one["name"] == name)
    return found


def environment(described: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in described["env"]}


def quantity(text: str) -> float:
    """Kubernetes' number: 200m is 0.2, 3Gi is 3 × 1024³."""
    factors = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    unit = next((unit for unit in sorted(factors, key=len, reverse=True) if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * factors.get(unit, 1)
