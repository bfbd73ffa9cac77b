"""What Ray Serve's HTTP server reads of a request before our application does, made harmless.

In HAProxy mode each replica runs that server. It decodes headers of its own (x-request-id, x-request-timeout-seconds,
...) as UTF-8, and answers any other byte in them with a plain 500; and it appends the client's x-request-id to every
response, however long it is.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.edge import REQUEST_ID, is_request_id


class SafeHeaders:
    """ASGI middleware outside of Serve's server: leaves out request ids that are not to be echoed, and headers that are
    not UTF-8. No header that means something here can be one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one request on."""
        if "headers" in scope:
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _is_safe(name, value)]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around its server; see ``guard_server``."""
    return [Middleware(SafeHeaders)]


def guard_server() -> None:
    """Puts ``SafeHeaders`` around the server that Serve starts in this process after the replica's constructor.

    Serve takes such middleware from a function that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, in the environment
    of its processes: set for a cluster, it would break every other application there; set in a deployment's
    runtime_env, it would replace what the job brought along. So it is set where Serve keeps it, in this process alone;
    a callback of the user's stays.
    """
    from ray.serve._private import http_util

    if not http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH:
        http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH = f"{__name__}:{middlewares.__name__}"


def _is_safe(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:
        return is_request_id(value)
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
