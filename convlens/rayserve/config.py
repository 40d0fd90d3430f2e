"""What is served and how: the application's arguments, and the serve config file that deploys them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from convlens.rayserve.archives import ServedEntry

Role = Literal["quick", "sweeps", "neighbours"]
Location = Literal["HeadOnly", "EveryNode"]
APPLICATION, IMPORT_PATH = "convlens", "convlens.rayserve.app:build"
MESSAGE_BYTES = 134_217_728  # of a request or a reply over gRPC, from clients and between processes
_SERVICER = "convlens.client.protocol.inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server"


class ServeArgs(BaseModel):
    """``archives``: entry -> .mar or its folder, where every machine finds it. ``roles``: the deployments of an entry
    (``quick`` at least); what a missing one is for goes to ``quick``. ``tokens_sha256``: digests of the tokens that
    clients may send, ``tokens_file`` more of them, one a line, read again when it changes; without both, everybody may
    ask. ``threads``, ``gpus``: of each replica; of a GPU also a fraction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    archives: dict[str, str] = Field(min_length=1)
    roles: tuple[Role, ...] = ("quick", "sweeps", "neighbours")
    tokens_sha256: tuple[str, ...] = ()
    tokens_file: str = ""
    threads: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)


def roles_of(entry: ServedEntry, roles: tuple[Role, ...]) -> tuple[Role, ...]:
    """Those of the roles that the entry has work for."""
    needed: dict[Role, bool] = {
        "quick": True,
        "sweeps": not entry.sweeps_at,
        "neighbours": bool(entry.section.get("gallery")),
    }
    return tuple(
        role for role in ("quick", "sweeps", "neighbours") if needed[role] and (role == "quick" or role in roles)
    )


def config(
    args: ServeArgs, *, host: str, port: int, grpc_port: int, location: Location = "EveryNode"
) -> dict[str, Any]:
    """A serve config file that deploys this, as Serve's own schema has it."""
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": args.model_dump(mode="json"),
    }
    return {
        "proxy_location": location,
        "http_options": {"host": host, "port": port},
        "grpc_options": {"port": grpc_port, "grpc_servicer_functions": [_SERVICER]},
        "applications": [application],
    }
