"""Headers that Ray Serve's server would stumble over are gone before it sees them; all others stay as they are."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from serve_app.front import Front, Shortcut, guard_server, middlewares


async def headers_after(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    seen: list[tuple[bytes, bytes]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    async def nothing(*_: object) -> None:
        raise AssertionError("nothing is received or sent here")

    await Front(application)({"type": "http", "headers": list(headers)}, nothing, nothing)
    return seen


@pytest.mark.parametrize("value", [b"an id", b"x" * 128])
async def test_request_ids_that_are_echoed_stay(value: bytes):
    assert await headers_after((b"x-request-id", value)) == [(b"x-request-id", value)]


@pytest.mark.parametrize("value", [b"", b"x" * 129, b"caf\xe9", "café".encode(), b"a\tb", b"a\n"])
async def test_request_ids_that_are_not_echoed_go(value: bytes):
    assert await headers_after((b"x-request-id", value), (b"host", b"a")) == [(b"host", b"a")]


async def test_what_is_not_utf8_goes_and_nothing_else():
    kept = [(b"accept", b""), (b"authorization", "Bearer schlüssel".encode()), (b"accept", b"x" * 5000)]
    assert await headers_after(*kept, (b"x-request-timeout-seconds", b"\xff")) == kept


async def test_what_has_no_headers_is_handed_on():
    scopes: list[Scope] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def nothing(*_: object) -> None: ...

    await Front(application)({"type": "lifespan"}, nothing, nothing)
    assert scopes == [{"type": "lifespan"}]


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, "serve_app.front:middlewares"), ("theirs:call", "theirs:call")]
)
def test_serve_finds_the_middleware_unless_another_is_configured(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, expected: str
):
    from ray.serve._private import http_util

    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", configured)
    guard_server()
    assert expected == http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
    assert [middleware.cls for middleware in middlewares()] == [Front]


async def test_while_overloaded_predictions_go_past_serve_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []
    overloaded = True

    def noting(name: str):
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            asked.append((name, scope["path"]))

        return application

    async def nothing(*_: object) -> None: ...

    from ray.serve._private import http_util

    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", None)
    guard_server(Shortcut(noting("straight"), lambda: overloaded))
    front = Front(noting("serve"))
    try:
        for method, path in (
            ("POST", "/predict"),
            ("POST", "/batch_predict"),
            ("GET", "/predict"),
            ("POST", "/explain"),
        ):
            await front({"type": "http", "method": method, "path": path, "headers": []}, nothing, nothing)
        overloaded = False
        await front({"type": "http", "method": "POST", "path": "/predict", "headers": []}, nothing, nothing)
    finally:
        guard_server()
    assert asked == [
        ("straight", "/predict"),
        ("straight", "/batch_predict"),
        ("serve", "/predict"),
        ("serve", "/explain"),
        ("serve", "/predict"),
    ]
