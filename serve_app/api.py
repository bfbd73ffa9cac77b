"""The HTTP interface: routes, keys, limits, validation, and answers in their final form.

Checks come in the order of the contract: route and method (404, 405), key (401), media type (415), size (413), JSON
(400), content (422), and then what only the classifier knows (422 for tokens, 503, 429). ``create_api`` needs a
``Backend`` and no Ray; ``replica.py`` and ``gateway.py`` have the deployments around it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from configs.schema import Settings
from serve_app import errors
from serve_app.answers import Answer, Explanation
from serve_app.board import View
from serve_app.edge import Edge, Exchange, exchange_of
from serve_app.errors import ErrorCode, ServiceError
from serve_app.info import application_version, current_version, describe
from serve_app.metrics import CONTENT_TYPE, GatewayMetrics
from serve_app.openapi import complete_openapi, error_replies, request_body
from serve_app.pages import add_pages
from serve_app.reading import read_body
from serve_app.schemas import (
    BatchPrediction,
    BatchPredictRequest,
    ExplainedPrediction,
    ExplainRequest,
    Health,
    Info,
    Prediction,
    PredictRequest,
    Readiness,
    parse_batch_predict,
    parse_explain,
    parse_predict,
)

OPEN_ROUTES = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
KEYED_ROUTES = frozenset({"/predict", "/batch_predict", "/explain", "/info", "/metrics"})


class Backend(Protocol):
    """What the gateway needs of the rest of the application."""

    @property
    def view(self) -> View:
        """The board's latest view, from memory."""

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: Callable[[], float]) -> Answer:
        """The answer for all texts. Raises ServiceError."""

    async def explain(
        self, text: str, truncate: bool, label: str | None, remaining_s: Callable[[], float]
    ) -> Explanation:
        """Which words moved the answer for the text, or speak for ``label``. Raises ServiceError."""

    async def metrics_text(self) -> str:
        """The Prometheus text of the whole application. Raises whatever keeps it from the board."""


class KeyRing:
    """The accepted API keys, as SHA-256 digests, so that no key lies in Serve's stored configuration."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = [bytes.fromhex(digest) for digest in digests]

    def check(self, request: Request) -> None:
        """Raises ServiceError unauthorized unless the request has one of the keys, or there are none."""
        if not self._digests:
            return
        accepted = False
        for key in _given_keys(request):
            digest = hashlib.sha256(key).digest()
            for known in self._digests:  # all of them, every time: the time taken tells nothing
                accepted |= hmac.compare_digest(digest, known)
        if not accepted:
            message = "An API key is needed: 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
            raise ServiceError(ErrorCode.UNAUTHORIZED, message, {"WWW-Authenticate": "Bearer"})


def digest_keys(keys: str) -> list[str]:
    """SHA-256 digests (hex) of a comma-separated list of keys, as in SERVE_API_KEYS. Raises ValueError for a list
    without a key in it, which could only be a mistake: it would leave the service open."""
    found = [key.strip() for key in keys.split(",") if key.strip()]
    if keys and not found:
        raise ValueError("SERVE_API_KEYS is set but has no key in it: unset it, or give keys separated by commas")
    return [hashlib.sha256(key.encode()).hexdigest() for key in found]


def create_api(
    settings: Settings,
    backend: Backend,
    metrics: GatewayMetrics,
    *,
    key_digests: Sequence[str] = (),
    adds_request_id: bool = True,
) -> FastAPI:
    """The whole HTTP interface as an ASGI application. Its ``state.predictions`` is one too, for POST /predict and
    /batch_predict alone: the same handlers without FastAPI around them, and always with a request id of ours."""
    serving = settings.serving
    keys = KeyRing(key_digests)
    api = FastAPI(
        title="Trialgate",
        version=application_version(),
        description='Text classification by the model that passed the gate. Every error is `{"error": {...}}`.',
        docs_url=None,  # FastAPI's own takes Swagger UI from the internet
        redoc_url=None,
        redirect_slashes=False,
        responses=error_replies(500, 504),  # of every route
    )
    edge: dict[str, Any] = {
        "deadline_s": serving.deadline_ms / 1000,
        "own_deadlines_s": {"/explain": serving.explain_deadline_ms / 1000},
        "metrics": metrics,
        "current_version": lambda: current_version(backend.view),
        "routes": OPEN_ROUTES | KEYED_ROUTES,
        "access_log": serving.access_log,
    }
    api.add_middleware(Edge, **edge, adds_request_id=adds_request_id)
    api.add_exception_handler(HTTPException, _raise_as_service_error)
    _add_open_routes(api, backend)
    add_pages(api)
    api.state.predictions = Edge(
        _Straight(_add_keyed_routes(api, settings, backend, keys)), **edge, adds_request_id=True
    )
    if serving.explain_enabled:
        _add_explain_route(api, settings, backend, keys)
    complete_openapi(api, KEYED_ROUTES if key_digests else frozenset())
    return api


class _Straight:
    """Calls the handler of a path that has one, without FastAPI's routing."""

    def __init__(self, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handlers[scope["path"]](Request(scope, receive))
        await response(scope, receive, send)


def _add_open_routes(api: FastAPI, backend: Backend) -> None:
    @api.get("/health", response_model=Health, summary="Liveness", tags=["service"])
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get("/ready", response_model=Readiness, summary="Readiness", tags=["service"], responses=error_replies(503))
    async def ready() -> Response:
        view = backend.view
        if view["draining"]:
            raise errors.draining()
        able = [replica for replica in view["replicas"] if replica["ready"]]
        if not able:
            raise errors.not_ready()
        return JSONResponse({"status": "ready", "ready_replicas": len(able), "replicas": len(view["replicas"])})


def _add_keyed_routes(
    api: FastAPI, settings: Settings, backend: Backend, keys: KeyRing
) -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """Returns the handlers of POST /predict and /batch_predict by path."""
    limits = settings.serving

    @api.post(
        "/predict",
        response_model=Prediction,
        summary="Classify one text",
        tags=["predictions"],
        responses=error_replies(400, 401, 413, 415, 422, 429, 503),
        openapi_extra=request_body(PredictRequest, limits),
    )
    async def predict(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        keys.check(request)
        body = await read_body(request, limits, exchange)
        with exchange.phase("validate"):
            asked = parse_predict(body, limits)
        answer = await _classify(backend, exchange, [asked.text], asked.truncate)
        return JSONResponse(_predictions(answer)[0])

    @api.post(
        "/batch_predict",
        response_model=BatchPrediction,
        summary="Classify several texts, all by one version",
        tags=["predictions"],
        responses=error_replies(400, 401, 413, 415, 422, 429, 503),
        openapi_extra=request_body(BatchPredictRequest, limits),
    )
    async def batch_predict(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        keys.check(request)
        body = await read_body(request, limits, exchange)
        with exchange.phase("validate"):
            asked = parse_batch_predict(body, limits)
        answer = await _classify(backend, exchange, asked.texts, asked.truncate)
        return JSONResponse({"predictions": _predictions(answer), "model_version": answer.version})

    @api.get(
        "/info",
        response_model=Info,
        summary="Model, limits and all replicas",
        tags=["service"],
        responses=error_replies(401),
    )
    async def info(request: Request) -> Response:
        keys.check(request)
        return JSONResponse(describe(settings, backend.view))

    @api.get(
        "/metrics",
        summary="Prometheus text of the whole application",
        tags=["service"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **error_replies(401, 503)},
    )
    async def metrics(request: Request) -> Response:
        keys.check(request)
        try:
            text = await backend.metrics_text()
        except Exception:  # noqa: BLE001 - Serve restarts the board; whatever hit it, there are no metrics now
            raise errors.not_ready("The metrics are not available right now.") from None
        return Response(text, media_type=CONTENT_TYPE)

    return {"/predict": predict, "/batch_predict": batch_predict}


def _add_explain_route(api: FastAPI, settings: Settings, backend: Backend, keys: KeyRing) -> None:
    limits = settings.serving

    @api.post(
        "/explain",
        response_model=ExplainedPrediction,
        summary="Which words moved the answer for one text",
        tags=["predictions"],
        responses=error_replies(400, 401, 413, 415, 422, 429, 503),
        openapi_extra=request_body(ExplainRequest, limits),
    )
    async def explain(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        keys.check(request)
        body = await read_body(request, limits, exchange)
        with exchange.phase("validate"):
            asked = parse_explain(body, limits)
        exchange.texts = 1
        if backend.view["draining"]:
            raise errors.draining()
        found = await backend.explain(asked.text, asked.truncate, asked.label, lambda: exchange.remaining_s)
        exchange.model_version = found.version
        exchange.phases.update(found.phases)
        return JSONResponse(_explained(asked.text, found))


async def _classify(backend: Backend, exchange: Exchange, texts: Sequence[str], truncate: bool) -> Answer:
    exchange.texts = len(texts)
    if backend.view["draining"]:
        raise errors.draining()
    with exchange.phase("classify"):
        answer = await backend.classify(texts, truncate, lambda: exchange.remaining_s)
    exchange.model_version = answer.version
    exchange.phases.update(answer.phases)
    return answer


def _predictions(answer: Answer) -> list[dict[str, Any]]:
    return [
        _prediction(answer.labels, row, truncated, answer.version)
        for row, truncated in zip(answer.probabilities, answer.truncated, strict=True)
    ]


def _prediction(labels: Sequence[str], row: Sequence[float], truncated: bool, version: str) -> dict[str, Any]:
    best = max(range(len(row)), key=row.__getitem__)
    return {
        "label": labels[best],
        "score": row[best],
        "probabilities": dict(zip(labels, row, strict=True)),
        "truncated": truncated,
        "model_version": version,
    }


def _explained(text: str, found: Explanation) -> dict[str, Any]:
    return {
        **_prediction(found.labels, found.probabilities, found.truncated, found.version),
        "explained_label": found.explained_label,
        "tokens": [
            {"text": text[start:end], "start": start, "end": end, "attribution": attribution}
            for start, end, attribution in found.words
        ],
        "baseline": found.baseline,
        "log_odds": found.log_odds,
        "baseline_log_odds": found.baseline_log_odds,
        "completeness_gap": found.completeness_gap,
    }


def _given_keys(request: Request) -> list[bytes]:
    given = [value for name, value in request.headers.raw if name == b"x-api-key"]
    for name, value in request.headers.raw:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            given.append(token.strip())
    return given


async def _raise_as_service_error(request: Request, error: Exception) -> Response:
    """For what the router itself refuses: it goes on to ``Edge``, which knows the envelope."""
    assert isinstance(error, HTTPException)
    if error.status_code == ErrorCode.NOT_FOUND.status:
        raise ServiceError(ErrorCode.NOT_FOUND, "There is no such route; / and /docs show what there is.") from None
    if error.status_code == ErrorCode.METHOD_NOT_ALLOWED.status:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method[:20]} is not possible here, only {allowed}."
        raise ServiceError(ErrorCode.METHOD_NOT_ALLOWED, message, {"Allow": allowed}) from None
    raise error
