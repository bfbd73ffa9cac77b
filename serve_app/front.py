"""What stands before Ray Serve in a replica's process: it makes harmless what Serve's HTTP server reads of a request,
and has what is too much refused without Serve.

In HAProxy mode each replica runs that server. It decodes headers of its own (x-request-id, x-request-timeout-seconds,
...) as UTF-8, and answers any other byte in them with a plain 500; and it appends the client's x-request-id to every
response, however long it is. It takes half a millisecond of a core for a request, which is nothing beside a forward
pass, but at four times the capacity it took half of the cores from those passes, for requests that were refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.edge import REQUEST_ID, is_request_id

PREDICTIONS: Final = ("/predict", "/batch_predict")


class Front:
    """ASGI middleware outside of Serve's server. Leaves out request ids that are not to be echoed, and headers that are
    not UTF-8: no header that means something here can be one. While the classifier is overloaded, predictions go to the
    application directly, which refuses them: Serve neither counts nor waits for those."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on."""
        if "headers" in scope:
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _is_safe(name, value)]}
        if _shortcut is not None and _is_prediction(scope) and _shortcut.is_overloaded():
            await _shortcut.predictions(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@dataclass(frozen=True)
class Shortcut:
    """What answers POST to PREDICTIONS in this process, and whether it would refuse one now."""

    predictions: ASGIApp
    is_overloaded: Callable[[], bool]


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
