"""The outermost layer of the gateway: request ids, the deadline, timing, and the envelope of every error.

Pure ASGI. It is outside of routing, so what it promises holds for a 404 as well: every response has one
``x-request-id``, ``x-model-version`` and ``Server-Timing``, every failure is our JSON, nothing takes longer than the
deadline, counted from here, which is where the first byte of the request arrives, and including its body.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import shelve
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access_log import log_access
from serve_app.errors import ErrorCode, ServiceError, deadline_exceeded
from serve_app.metrics import GatewayMetrics

REQUEST_ID = b"x-request-id"
_VALID_ID = re.compile(rb"[\x20-\x7e]{1,128}")
_SCOPE_KEY = "trialgate.exchange"
_CLIENT_GONE = 499  # nginx's status for a request whose client went away; only metrics and access log see it
logger = logging.getLogger(__name__)


@dataclass
class Exchange:
    """What is known of one request while it is answered. ``phases``: seconds by name, in order."""

    request_id: str
    started: float
    deadline_s: float
    phases: dict[str, float] = field(default_factory=dict)
    model_version: str | None = None  # the version that computed the answer
    error: str = ""
    texts: int = 0  # that it asks about
    body_bytes: int = 0  # of its body, read

    @property
    def remaining_s(self) -> float:
        """Seconds left of the deadline."""
        return self.deadline_s - (time.perf_counter() - self.started)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = time.perf_counter() - began

    def server_timing(self) -> str:
        """The ``Server-Timing`` header: milliseconds per phase, and in total."""
        total = {**self.phases, "total": time.perf_counter() - self.started}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in total.items())


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange:
    """The exchange of a request that came through ``Edge``."""
    exchange: Exchange = scope[_SCOPE_KEY]
    return exchange


def is_request_id(value: bytes) -> bool:
    """Whether a client's ``x-request-id`` is echoed: 1 to 128 printable ASCII characters."""
    return _VALID_ID.fullmatch(value) is not None


class Edge:
    """ASGI middleware around the gateway's routes.

    ``own_deadlines_s``: of the paths that have another than ``deadline_s``. ``current_version()`` names the version
    that is served now, or none. ``adds_request_id``: whether we send the header; behind Ray Serve we do not, because
    Serve adds it to whatever we answer. ``routes``: paths that appear in the metrics and the access log under their own
    name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        deadline_s: float,
        own_deadlines_s: Mapping[str, float],
        metrics: GatewayMetrics,
        current_version: Callable[[], str | None],
        routes: frozenset[str],
        adds_request_id: bool,
        access_log: bool,
    ) -> None:
        self._app, self._deadline_s, self._metrics = app, deadline_s, metrics
        self._own_deadlines_s = dict(own_deadlines_s)
        self._current_version, self._routes, self._adds_request_id = current_version, routes, adds_request_id
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        valid = is_request_id(given)
        request_id = given.decode("ascii") if valid else f"{random.getrandbits(128):032x}"  # no secret
        path = _path(scope)
        exchange = Exchange(request_id, time.perf_counter(), self._own_deadlines_s.get(path, self._deadline_s))
        scope[_SCOPE_KEY] = exchange
        status = _CLIENT_GONE

        async def send_complete(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = self._with_headers(message, exchange, valid)
            await send(message)

        self._metrics.in_progress.inc()
        try:
            error = await self._answer(scope, receive, send_complete, exchange)
            if error is not None and status == _CLIENT_GONE:
                await send_error(send_complete, exchange, error)
        finally:
            self._metrics.in_progress.dec()
            seconds = time.perf_counter() - exchange.started
            route = path if path in self._routes else "other"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(route, method, status, exchange.error, seconds)
            if self._access_log:
                log_access(exchange, route, method, status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> ServiceError | None:
        """Lets the application answer; returns the error to send if it could not."""
        timer = asyncio.timeout(exchange.deadline_s)
        try:
            async with timer:
                await self._app(scope, receive, send)
        except ServiceError as error:
            return error
        except Exception as error:
            if timer.expired() and isinstance(error, TimeoutError):
                return deadline_exceeded(exchange.deadline_s)
            logger.exception("request %s failed", exchange.request_id)
            return ServiceError(ErrorCode.INTERNAL, "Something went wrong here; the request id finds it in the log.")
        return None

    def _with_headers(self, message: Message, exchange: Exchange, valid_id: bool) -> Message:
        added = {
            "x-model-version": exchange.model_version or self._current_version() or "none",
            "server-timing": exchange.server_timing(),
        }
        headers = [(name, value) for name, value in message["headers"] if name != REQUEST_ID]
        headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in added.items()]
        if self._adds_request_id or not valid_id:
            headers.append((REQUEST_ID, exchange.request_id.encode()))
        complete = {**message, "headers": headers}
        return complete if self._adds_request_id or valid_id else _sealed(complete)


_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def _sealed(message: Message) -> Message:
    """``message`` in a form that what is appended to its headers later does not stick to.

    Serve's proxy appends the client's own x-request-id to every response, even one that is 4000 characters long or
    not ASCII, and an application cannot configure that. It does so in place (``message["headers"] = new = [...]``,
    then ``new.append``). A ``shelve.Shelf`` copies what is assigned to it, so the appended value stays outside and
    ours is the only one. The proxy knows no class of ours, therefore one of the standard library.
    """
    sealed: shelve.Shelf[Any] = shelve.Shelf({})
    sealed.update(message)
    return sealed


async def send_error(send: Send, exchange: Exchange, error: ServiceError) -> None:
    """Sends ``error`` in its envelope."""
    exchange.error = error.code.value
    body = json.dumps(error.envelope(exchange.request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.code.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    root, path = scope.get("root_path", ""), scope["path"]
    return path.removeprefix(root) if root and path.startswith(root) else path
