"""What stands before Ray Serve in a replica's process: it makes harmless what Serve's HTTP server reads of a request,
and takes predictions to the application without Serve.

In HAProxy mode each replica runs that server. It decodes headers of its own (x-request-id, x-request-timeout-seconds,
...) as UTF-8, and answers any other byte in them with a plain 500; and it appends the client's x-request-id to every
response, however long it is. Its routing, context and figures take half a millisecond of a core for a request
(docs/serving.md has what it is without); at four times the capacity they took half of the cores from forward passes.
What Serve does for a request, predictions have of their own: admission, a deadline, metrics, an id, and an end when the
client goes away. A replica that stops waits for them as for all requests: its HTTP server does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.edge import REQUEST_ID, is_request_id

PREDICTIONS: Final = ("/predict", "/batch_predict")


@dataclass(frozen=True)
class Shortcut:
    """What answers POST to PREDICTIONS in this process, on ``loop`` alone: Serve runs its HTTP server on another one
    unless it is throughput-optimised."""

    predictions: ASGIApp
    loop: asyncio.AbstractEventLoop


class Front:
    """ASGI middleware outside of Serve's server. Leaves out request ids that are not to be echoed, and headers that are
    not UTF-8: no header that means something here can be one. Predictions go to the ``Shortcut`` if there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on."""
        if "headers" in scope:
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _is_safe(name, value)]}
        if _shortcut is not None and _is_prediction(scope) and asyncio.get_running_loop() is _shortcut.loop:
            await answer_while_connected(_shortcut.predictions, scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def answer_while_connected(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Lets ``app`` answer a request; cancels it when the client goes away before the answer."""
    request, gone = asyncio.current_task(), False
    assert request is not None
    watching: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        request.cancel()

    async def receive_and_watch() -> Message:
        nonlocal watching, gone
        message = await receive()
        gone = gone or message["type"] == "http.disconnect"
        if watching is None and not gone and not message.get("more_body", False):
            watching = asyncio.create_task(watch())  # the body has been read: all that can come now is the end
        return message

    try:
        await app(scope, receive_and_watch, send)
    except asyncio.CancelledError:
        if not gone:
            raise
        request.uncancel()
    finally:
        if watching is not None:
            watching.cancel()


_shortcut: Shortcut | None = None  # of this process, which is one replica: Serve makes Front from a name


def middlewares() -> list[Middleware]:
    """What Serve puts around its server; see ``guard_server``."""
    return [Middleware(Front)]


def guard_server(shortcut: Shortcut | None = None) -> None:
    """Puts ``Front`` around the server that Serve starts in this process after the replica's constructor.

    Serve takes such middleware from a function that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, in the environment
    of its processes: set for a cluster, it would break every other application there; set in a deployment's
    runtime_env, it would replace what the job brought along. So it is set where Serve keeps it, in this process alone;
    a callback of the user's stays.
    """
    from ray.serve._private import http_util

    global _shortcut
    _shortcut = shortcut
    if not http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH:
        http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH = f"{__name__}:{middlewares.__name__}"


def _is_prediction(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PREDICTIONS


def _is_safe(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:
        return is_request_id(value)
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
