"""The ingress: REST, KServe's routes and gRPC in, each request handed to a replica, its answer out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import ray.exceptions
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from convlens import __version__
from convlens.client.protocol.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from convlens.errors import ConvLensError
from convlens.protocol.responses import dumps, error_json
from convlens.protocol.routes import Resource, Route, parse_route
from convlens.rayserve import front_page, metrics, refusals
from convlens.rayserve.archives import ServedEntry
from convlens.rayserve.context import JSON, Answer
from convlens.rayserve.forms import body_parts
from convlens.rayserve.refusals import Refusal
from convlens.rayserve.tokens import TokenCheck
from convlens.rayserve.upload import BODY

_log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 33_554_432  # as max_request_size in config.properties
_READY_S = 10.0  # so long a model may take to say that it is ready
_PIECE = 1 << 20  # of a large reply: the first leaves while the rest is still copied
# Never the token.
_FORWARDED = ("content-type", "content-encoding", "accept", "x-request-start", "inference-header-content-length")
_EXPLAIN = {False: "False", True: "True"}


@dataclass(frozen=True)
class ServedModel:
    """An entry and the handles of its deployments, by role."""

    entry: ServedEntry
    handles: Mapping[str, Any]


@serve.ingress()
class Ingress:
    """Light: no torch, no model. Several of them share the work where one is not enough."""

    def __init__(self, models: list[ServedModel], tokens: TokenCheck, store: Any) -> None:
        self._models = {model.entry.name: model for model in models}
        # By value over gRPC: through Ray's object store a request of 100 KB takes milliseconds longer.
        self._handles = {
            model.entry.name: {
                role: handle.options(method_name="answer", _by_reference=False)
                for role, handle in model.handles.items()
            }
            for model in models
        }
        self._tokens, self._store = tokens, store

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def __serve_build_asgi_app__(self) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # uvicorn takes no method for ASGI 3
            await self._serve(scope, receive, send)

        return app

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """By the ASGI protocol, without Starlette's application: its middleware and routes take longer than ours."""
        if scope["type"] == "http":
            try:
                response = await self._respond(Request(scope, receive))
            except Refusal as refusal:
                response = Response(refusal.body, refusal.status, media_type=JSON)
            await response(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _respond(self, request: Request) -> Response:
        route = parse_route(request.scope["raw_path"].decode("latin-1"))
        if route is None:
            raise refusals.no_resource()
        if request.method not in route.verbs:
            raise refusals.no_method()
        if route.resource == "page":
            return Response(front_page.page(sorted(self._models)), media_type="text/html", headers=front_page.HEADERS)
        self._authorise(request.headers.get("authorization", ""))
        if route.resource == "answer":
            return await self._http(request, route)
        if route.resource in ("metadata", "ready"):
            # By a replica, so that "ready" is the word of a model that answers.
            return _response(await self._answer(route, {"body": {"describe": route.resource}}, {}))
        if route.resource == "server_ready":
            return await self._all_ready()
        if route.resource == "metrics":
            return Response(await self._store.text.remote(), media_type=metrics.CONTENT_TYPE)
        return Response(dumps(self._of_the_server(route.resource)), media_type=JSON)

    async def _http(self, request: Request, route: Route) -> Response:
        self._model(route)
        body = await _body(request)
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        try:
            parts = body_parts(body, headers.get("content-type", ""))
        except ConvLensError as error:
            return Response(dumps(error_json(error)), error.status, media_type=JSON)
        return _response(await self._answer(route, parts, headers))

    def _of_the_server(self, resource: Resource) -> dict[str, Any]:
        said: dict[Resource, dict[str, Any]] = {
            "ping": {"status": "Healthy"},
            "models": {"models": sorted(self._models)},
            "server": {"name": "convlens", "version": __version__, "extensions": ["binary_tensor_data"]},
            "server_live": {"live": True},
        }
        return said[resource]

    async def _all_ready(self) -> Response:
        """Whether every model answers, each by a replica."""
        asked = [self._answer(Route(name), {"body": {"describe": "ready"}}, {}) for name in self._models]
        try:
            answers = await asyncio.wait_for(asyncio.gather(*asked), _READY_S)
        except TimeoutError as error:
            raise refusals.busy(f"a model gives no answer within {_READY_S:g} s") from error
        if any(answer.status != 200 for answer in answers):
            raise refusals.busy("a model is not ready")
        return Response(dumps({"ready": True}), media_type=JSON)

    # --- gRPC, by TorchServe's protocol file --------------------------------------------------------------------------

    async def Predictions(self, request: PredictionsRequest, grpc_context: Any) -> PredictionResponse:
        """One reply; an error of the service is a reply, too."""
        return await self._grpc(request, grpc_context)

    async def StreamPredictions(
        self, request: PredictionsRequest, grpc_context: Any
    ) -> AsyncIterator[PredictionResponse]:
        """A stream of one reply."""
        yield await self._grpc(request, grpc_context)

    async def Ping(self, request: Any, grpc_context: Any) -> TorchServeHealthResponse:
        """Whether the ingress is there."""
        return TorchServeHealthResponse(health="Healthy")

    async def _grpc(self, request: PredictionsRequest, grpc_context: Any) -> PredictionResponse:
        metadata = {name.lower(): value for name, value in grpc_context.invocation_metadata()}
        route = Route(request.model_name, request.model_version)
        try:
            self._authorise(metadata.get("authorization", ""))
            self._model(route)
            answer = await self._answer(route, dict(request.input), {})
        except Refusal as refusal:
            # Not raised: what Serve makes of an exception with a code cannot be unpickled by its proxy.
            grpc_context.set_code(refusal.code)
            grpc_context.set_details(refusal.details)
            return PredictionResponse()
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        return PredictionResponse(prediction=body)

    # --- both ---------------------------------------------------------------------------------------------------------

    def _authorise(self, header: str) -> None:
        if not self._tokens.allows(header):
            raise refusals.no_token()

    def _model(self, route: Route) -> ServedModel:
        model = self._models.get(route.model)
        if model is None:
            raise refusals.no_model(route.model)
        if route.version and route.version != model.entry.version:
            raise refusals.no_version(route.model, route.version)
        return model

    async def _answer(self, route: Route, parts: dict[str, Any], headers: dict[str, str]) -> Answer:
        """Asks the quick deployment, and where that says so another one."""
        # A deadline counts from here where the client does not say when it sent the request.
        headers.setdefault("x-request-start", f"t={time.time():.6f}")
        headers |= {"explain": _EXPLAIN[route.explain], "url_path": route.method}
        handles = self._handles[self._model(route).entry.name]
        answer = await _ask(handles["quick"], parts, headers)
        return answer if isinstance(answer, Answer) else await _ask(handles[answer], parts, headers)


async def _ask(handle: Any, parts: dict[str, Any], headers: Mapping[str, str]) -> Any:
    """What a replica answers; where it dies on the way another one is asked, once: requests change nothing."""
    for attempt in range(2):
        try:
            return await handle.remote(parts, headers)
        except BackPressureError as error:
            raise refusals.busy("too many requests wait") from error
        except DeploymentUnavailableError as error:
            raise refusals.busy("no replica is up") from error
        except (ray.exceptions.RayError, grpc.RpcError) as error:
            _log.warning("a replica died with a request (attempt %d): %s", attempt + 1, type(error).__name__)
            if attempt:
                raise refusals.busy("two replicas died with this request") from error
        except Exception as error:  # of a replica: over gRPC it arrives as it was raised there
            _log.exception("a replica failed")
            raise refusals.failed() from error
    raise AssertionError("unreachable")


async def _body(request: Request) -> bytes:
    """The whole body; refused as soon as it is too large."""
    if BODY in request.scope:
        return bytes(request.scope[BODY])
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_REQUEST_BYTES:
            raise refusals.too_large(MAX_REQUEST_BYTES)
        pieces.append(piece)
    return b"".join(pieces)


def _response(answer: Answer) -> Response:
    body = answer.body.encode() if isinstance(answer.body, str) else answer.body
    if len(body) <= _PIECE:
        return _typed(Response(body, answer.status, headers=dict(answer.headers)), answer.media)
    headers = {**answer.headers, "content-length": str(len(body))}
    return _typed(StreamingResponse(_pieces(body), answer.status, headers=headers), answer.media)


def _typed(response: Response, media: str) -> Response:
    response.headers["content-type"] = media  # Starlette would add a charset to some
    return response


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing is to be done when the server starts and ends, but it waits to be told so."""
    for word in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{word}.complete"})
