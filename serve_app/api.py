"""The HTTP interface: routes, keys, limits, validation, and answers in their final form.

Checks come in the order of the contract: route and method (404, 405), key (401), media type (415), size (413), JSON
(400), content (422), and then what only the classifier knows (422 for tokens, 503, 429). Bodies are read by hand:
FastAPI would read a body whole before anything of ours could refuse it. ``create_api`` needs a ``Backend`` and no Ray;
``gateway.py`` has the deployment around it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.metadata
import importlib.resources
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from configs.schema import ServingConfig, Settings
from serve_app import errors
from serve_app.answers import Answer
from serve_app.board import View
from serve_app.edge import Edge, Exchange, exchange_of
from serve_app.errors import ErrorCode, ServiceError
from serve_app.metrics import CONTENT_TYPE, GatewayMetrics
from serve_app.schemas import (
    BatchPrediction,
    BatchPredictRequest,
    ErrorReply,
    Health,
    Prediction,
    PredictRequest,
    Readiness,
    parse_batch_predict,
    parse_predict,
)

OPEN_ROUTES = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
KEYED_ROUTES = frozenset({"/predict", "/batch_predict", "/info", "/metrics"})


class Backend(Protocol):
    """What the gateway needs of the rest of the application."""

    @property
    def view(self) -> View:
        """The board's latest view, from memory."""

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: Callable[[], float]) -> Answer:
        """The answer for all texts. Raises ServiceError."""

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
    """The whole HTTP interface as an ASGI application."""
    serving = settings.serving
    keys = KeyRing(key_digests)
    api = FastAPI(
        title="Trialgate",
        version=application_version(),
        description='Text classification by the model that passed the gate. Every error is `{"error": {...}}`.',
        docs_url="/docs",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    api.add_middleware(
        Edge,
        deadline_s=serving.deadline_ms / 1000,
        metrics=metrics,
        current_version=lambda: current_version(backend.view),
        routes=OPEN_ROUTES | KEYED_ROUTES,
        adds_request_id=adds_request_id,
        access_log=serving.access_log,
    )
    api.add_exception_handler(HTTPException, _raise_as_service_error)
    _add_open_routes(api, backend)
    _add_keyed_routes(api, settings, backend, keys)
    _complete_openapi(api, bool(key_digests))
    return api


def _add_open_routes(api: FastAPI, backend: Backend) -> None:
    page = importlib.resources.files("serve_app").joinpath("page.html").read_text(encoding="utf-8")

    @api.get("/health", response_model=Health, summary="Liveness", tags=["service"])
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get("/ready", response_model=Readiness, summary="Readiness", tags=["service"], responses=_errors(503))
    async def ready() -> Response:
        view = backend.view
        if view["draining"]:
            raise errors.draining()
        able = [replica for replica in view["replicas"] if replica["ready"]]
        if not able:
            raise errors.not_ready()
        return JSONResponse({"status": "ready", "ready_replicas": len(able), "replicas": len(view["replicas"])})

    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        # Nothing from elsewhere: the page works without the internet, and cannot be made to talk to anyone else.
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


def _add_keyed_routes(api: FastAPI, settings: Settings, backend: Backend, keys: KeyRing) -> None:
    limits = settings.serving

    @api.post(
        "/predict",
        response_model=Prediction,
        summary="Classify one text",
        tags=["predictions"],
        responses=_errors(400, 401, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_body_of(PredictRequest),
    )
    async def predict(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        keys.check(request)
        body = await _read_body(request, limits, exchange)
        with exchange.phase("validate"):
            asked = parse_predict(body, limits)
        answer = await _classify(backend, exchange, [asked.text], asked.truncate)
        return JSONResponse(_predictions(answer)[0])

    @api.post(
        "/batch_predict",
        response_model=BatchPrediction,
        summary="Classify several texts, all by one version",
        tags=["predictions"],
        responses=_errors(400, 401, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_body_of(BatchPredictRequest),
    )
    async def batch_predict(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        keys.check(request)
        body = await _read_body(request, limits, exchange)
        with exchange.phase("validate"):
            asked = parse_batch_predict(body, limits)
        answer = await _classify(backend, exchange, asked.texts, asked.truncate)
        return JSONResponse({"predictions": _predictions(answer), "model_version": answer.version})

    @api.get("/info", summary="Model, limits and all replicas", tags=["service"], responses=_errors(401))
    async def info(request: Request) -> Response:
        keys.check(request)
        return JSONResponse(describe(settings, backend.view))

    @api.get(
        "/metrics",
        summary="Prometheus text of the whole application",
        tags=["service"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_errors(401, 503)},
    )
    async def metrics(request: Request) -> Response:
        keys.check(request)
        try:
            text = await backend.metrics_text()
        except Exception:  # noqa: BLE001 - Serve restarts the board; whatever hit it, there are no metrics now
            raise errors.not_ready("The metrics are not available right now.") from None
        return Response(text, media_type=CONTENT_TYPE)


def describe(settings: Settings, view: View) -> dict[str, Any]:
    """The body of /info."""
    serving = settings.serving
    able = [replica for replica in view["replicas"] if replica["ready"]]
    newest: dict[str, Any] = max(able, key=lambda replica: replica["since"], default={})
    return {
        "model_name": settings.tracking.model_name,
        "alias": serving.alias,
        "model_version": newest.get("version"),
        "run_id": newest.get("run_id"),
        "f1": newest.get("f1"),
        "labels": newest.get("labels"),
        "precision": newest.get("precision"),
        "precision_reason": newest.get("precision_reason"),
        "device": newest.get("device"),
        "application_version": application_version(),
        "draining": view["draining"],
        "limits": {
            "max_length": newest.get("max_length"),
            "max_text_chars": serving.max_text_chars,
            "max_client_batch_size": serving.max_client_batch_size,
            "max_body_bytes": serving.max_body_bytes,
            "max_concurrent_texts": serving.max_concurrent_texts,
            "max_queue_ms": serving.max_queue_ms,
            "max_batch_tokens": serving.batch_tokens,
            "max_batch_texts": serving.max_batch_texts,
            "deadline_ms": serving.deadline_ms,
        },
        "replicas": view["replicas"],
    }


def current_version(view: View) -> str | None:
    """The version that was put to work last, of those that are being served."""
    able = [replica for replica in view["replicas"] if replica["ready"]]
    return max(able, key=lambda replica: replica["since"])["version"] if able else None


def application_version() -> str:
    """Version of the installed package."""
    try:
        return importlib.metadata.version("trialgate")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


async def _read_body(request: Request, limits: ServingConfig, exchange: Exchange) -> bytes:
    """The body, refused before it is read whole if it is not JSON by its type or too large."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "").partition("charset=")[2].partition(";")[0]
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        message = "The body must be sent as 'Content-Type: application/json' in UTF-8."
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    too_large = ServiceError(
        ErrorCode.PAYLOAD_TOO_LARGE, f"The body is larger than {limits.max_body_bytes} bytes, the most that is taken."
    )
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limits.max_body_bytes:
        raise too_large
    body = bytearray()
    with exchange.phase("body"):
        try:
            async for chunk in request.stream():
                body += chunk
                exchange.body_bytes = len(body)
                if len(body) > limits.max_body_bytes:
                    raise too_large
        except ClientDisconnect:
            raise asyncio.CancelledError from None  # nobody is there to read an answer
    return bytes(body)


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
    predictions = []
    for row, truncated in zip(answer.probabilities, answer.truncated, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        predictions.append(
            {
                "label": answer.labels[best],
                "score": row[best],
                "probabilities": dict(zip(answer.labels, row, strict=True)),
                "truncated": truncated,
                "model_version": answer.version,
            }
        )
    return predictions


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


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "model": ErrorReply,
            "description": " or ".join(code.value for code in ErrorCode if code.status == status),
        }
        for status in statuses
    }


def _body_of(model: type[PredictRequest] | type[BatchPredictRequest]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _complete_openapi(api: FastAPI, keyed: bool) -> None:
    """Adds to the generated document what FastAPI cannot see: keys and the headers of every response."""
    document = api.openapi()
    text = {"schema": {"type": "string"}}
    headers = {"x-request-id": text, "x-model-version": text, "Server-Timing": text}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for reply in operation["responses"].values():
                reply["headers"] = dict(headers)
            if "429" in operation["responses"]:
                operation["responses"]["429"]["headers"]["Retry-After"] = {"schema": {"type": "integer"}}
            if keyed and path in KEYED_ROUTES:
                operation["security"] = [{"bearer": []}, {"apiKey": []}]
    if keyed:
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    api.openapi_schema = json.loads(json.dumps(document))
