"""The ingress: REST, KServe's routes and gRPC in, each request handed to a replica, its answer out."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray.exceptions
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from convlens import __version__
from convlens.client.protocol.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from convlens.errors import ConvLensError
from convlens.protocol.metadata import Aspect
from convlens.protocol.responses import dumps, error_json
from convlens.rayserve import front_page, metrics, refusals
from convlens.rayserve.archives import ServedEntry
from convlens.rayserve.context import JSON, Answer
from convlens.rayserve.forms import body_parts
from convlens.rayserve.refusals import Refusal
from convlens.rayserve.tokens import TokenCheck

_log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 33_554_432  # as max_request_size in config.properties
_PIECE = 1 << 20  # of a large reply: the first leaves while the rest is still copied
# Never the token.
_FORWARDED = ("content-type", "content-encoding", "accept", "x-request-start", "inference-header-content-length")
_VERBS = ["GET", "POST", "PUT"]
_EXPLAIN = {False: "False", True: "True"}


@dataclass(frozen=True)
class ServedModel:
    """An entry and the handles of its deployments, by role."""

    entry: ServedEntry
    handles: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """Where a request goes: the entry, whether it asks for explanations, and the method in its path."""

    model: str
    version: str = ""
    explain: bool = False
    method: str = ""


@serve.ingress()
class Ingress:
    """Light: no torch, no model. Several of them share the work where one is not enough."""

    def __init__(self, models: list[ServedModel], tokens: TokenCheck, store: Any) -> None:
        self._models = {model.entry.name: model for model in models}
        self._tokens, self._store = tokens, store

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def __serve_build_asgi_app__(self) -> Starlette:
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/ping", self._ping, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v1/models", self._model_list, methods=["GET"]),
            Route("/v2", self._server_metadata, methods=["GET"]),
            Route("/v2/health/{state:str}", self._health, methods=["GET"]),
        ]
        for word, explain in (("predictions", False), ("explanations", True)):
            for path in ("{model}", "{model}/{version}", "{model}/{version}/{method:path}"):
                routes.append(_answering(f"/{word}/{path}", self._http, explain=explain))
        for word, explain in (("predict", False), ("explain", True)):
            routes.append(_answering(f"/v1/models/{{model}}:{word}", self._http, explain=explain))
        for word, explain in (("infer", False), ("explain", True)):
            for path in ("{model}", "{model}/versions/{version}"):
                routes.append(_answering(f"/v2/models/{path}/{word}", self._http, explain=explain))
        for path in ("{model}", "{model}/versions/{version}"):
            routes.append(_describing(f"/v2/models/{path}", self._describe, aspect="metadata"))
            routes.append(_describing(f"/v2/models/{path}/ready", self._describe, aspect="ready"))
        routes.append(_describing("/v1/models/{model}", self._describe, aspect="ready"))
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_found, Refusal: _refused})

    async def _http(self, request: Request, call: Call) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        self._model(call)
        body = await _body(request)
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        try:
            parts = body_parts(body, headers.get("content-type", ""))
        except ConvLensError as error:
            return Response(dumps(error_json(error)), error.status, media_type=JSON)
        return _response(await self._answer(call, parts, headers))

    async def _page(self, request: Request) -> Response:
        return Response(front_page.page(sorted(self._models)), media_type="text/html", headers=front_page.HEADERS)

    async def _ping(self, request: Request) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        return Response(dumps({"status": "Healthy"}), media_type=JSON)

    async def _metrics(self, request: Request) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        return Response(await self._store.text.remote(), media_type=metrics.CONTENT_TYPE)

    async def _server_metadata(self, request: Request) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        metadata = {"name": "convlens", "version": __version__, "extensions": ["binary_tensor_data"]}
        return Response(dumps(metadata), media_type=JSON)

    async def _model_list(self, request: Request) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        return Response(dumps({"models": sorted(self._models)}), media_type=JSON)

    async def _health(self, request: Request) -> Response:
        self._authorise(request.headers.get("authorization", ""))
        state = request.path_params["state"]
        if state not in ("live", "ready"):
            raise refusals.no_resource()
        return Response(dumps({state: True}), media_type=JSON)

    async def _describe(self, request: Request, call: Call, aspect: Aspect) -> Response:
        """By a replica, so that "ready" is the word of a model that answers."""
        self._authorise(request.headers.get("authorization", ""))
        self._model(call)
        return _response(await self._answer(call, {"body": {"describe": aspect}}, {}))

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
        call = Call(request.model_name, request.model_version)
        try:
            self._authorise(metadata.get("authorization", ""))
            self._model(call)
            answer = await self._answer(call, dict(request.input), {})
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

    def _model(self, call: Call) -> ServedModel:
        model = self._models.get(call.model)
        if model is None:
            raise refusals.no_model(call.model)
        if call.version and call.version != model.entry.version:
            raise refusals.no_version(call.model, call.version)
        return model

    async def _answer(self, call: Call, parts: dict[str, Any], headers: dict[str, str]) -> Answer:
        """Asks the quick deployment, and where that says so another one."""
        # A deadline counts from here where the client does not say when it sent the request.
        headers.setdefault("x-request-start", f"t={time.time():.6f}")
        headers |= {"explain": _EXPLAIN[call.explain], "url_path": call.method}
        handles = self._model(call).handles
        answer = await _ask(handles["quick"], parts, headers)
        return answer if isinstance(answer, Answer) else await _ask(handles[answer], parts, headers)


async def _ask(handle: Any, parts: dict[str, Any], headers: Mapping[str, str]) -> Any:
    """What a replica answers; where it dies on the way another one is asked, once: requests change nothing."""
    for attempt in range(2):
        try:
            return await handle.answer.remote(parts, headers)
        except BackPressureError as error:
            raise refusals.busy("too many requests wait") from error
        except DeploymentUnavailableError as error:
            raise refusals.busy("no replica is up") from error
        except ray.exceptions.RayTaskError as error:
            _log.exception("a replica failed")
            raise refusals.failed() from error
        except ray.exceptions.RayError as error:
            _log.warning("a replica died with a request (attempt %d): %s", attempt + 1, type(error).__name__)
            if attempt:
                raise refusals.busy("two replicas died with this request") from error
    raise AssertionError("unreachable")


async def _body(request: Request) -> bytes:
    """The whole body; refused as soon as it is too large."""
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


def _answering(path: str, answer: Any, *, explain: bool) -> Route:
    async def endpoint(request: Request) -> Response:
        parts = request.path_params
        call = Call(parts["model"], parts.get("version", ""), explain, parts.get("method", "").strip("/"))
        response: Response = await answer(request, call)
        return response

    return Route(path, endpoint, methods=_VERBS)


def _describing(path: str, describe: Any, *, aspect: Aspect) -> Route:
    async def endpoint(request: Request) -> Response:
        parts = request.path_params
        response: Response = await describe(request, Call(parts["model"], parts.get("version", "")), aspect)
        return response

    return Route(path, endpoint, methods=["GET"])


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return Response(refusal.body, refusal.status, media_type=JSON)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return await _refused(request, refusals.no_method() if status == 405 else refusals.no_resource())
