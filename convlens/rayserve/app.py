"""The application as Serve builds it: ``import_path: convlens.rayserve.app:build`` in a serve config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from convlens.rayserve.archives import ServedEntry, served_entries
from convlens.rayserve.config import MESSAGE_BYTES, Role, ServeArgs, roles_of
from convlens.rayserve.ingress import Ingress, ServedModel
from convlens.rayserve.metrics import MetricsStore
from convlens.rayserve.replica import ModelReplica
from convlens.rayserve.tokens import TokenCheck

INGRESS, METRICS = "ingress", "metrics"
_QUEUE = 100  # requests that may wait for a deployment; one more is answered 503
_GRACE_S = 20.0  # a replica that goes may take so long for what it has; one for sweeps as long as the archive says
# Of a request or a reply between ingress and replica; Serve's own limit is 4 MB.
_MESSAGES = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MESSAGE_BYTES)}
# Nothing in the ingress blocks, so that it needs no threads beside Ray's: to hand over takes a millisecond each time.
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
_AHEAD = 2  # batches that a replica holds: while one is computed the next one gathers


def build(args: Mapping[str, Any]) -> serve.Application:
    """The ingress over the deployments of each entry, named ENTRY-ROLE. ``args`` are those of ServeArgs.

    Raises ServerError for a bad archive.
    """
    return _application(ServeArgs.model_validate(dict(args)))


def _application(args: ServeArgs) -> serve.Application:
    store = serve.deployment(name=METRICS, ray_actor_options={"num_cpus": 0})(MetricsStore).bind()
    models = [
        ServedModel(entry, {role: _replicas(entry, role, args, store) for role in roles_of(entry, args.roles)})
        for entry in served_entries(args.archives)
    ]
    options = {"num_cpus": 0, "runtime_env": {"env_vars": _MESSAGES | _ONE_LOOP}}
    ingress = serve.deployment(name=INGRESS, max_ongoing_requests=1000, ray_actor_options=options)(Ingress)
    application: serve.Application = ingress.bind(models, TokenCheck(args.tokens_sha256, args.tokens_file), store)
    return application


def _replicas(entry: ServedEntry, role: Role, args: ServeArgs, store: Any) -> Any:
    batch_size = 1 if role == "sweeps" else entry.batch_size
    deployment = serve.deployment(
        name=f"{entry.name}-{role}",
        max_ongoing_requests=_AHEAD * batch_size,
        max_queued_requests=_QUEUE,
        graceful_shutdown_timeout_s=entry.response_timeout_s if role == "sweeps" else _GRACE_S,
        ray_actor_options={
            "num_cpus": args.cpus,
            "num_gpus": args.gpus,
            "runtime_env": {"env_vars": _environment(args.threads)},
        },
    )
    return deployment(ModelReplica).bind(entry, role, roles_of(entry, args.roles), store)


def _environment(threads: int) -> dict[str, str]:
    # Torch's waiting threads spin unless told otherwise, which is ruinous beside other replicas.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | _MESSAGES
