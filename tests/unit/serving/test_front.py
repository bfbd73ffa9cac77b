"""Headers that Ray Serve's server would stumble over are gone before it sees them, and predictions go past it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.front import Front, Shortcut, answer_while_connected, guard_server, middlewares


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


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ray.serve._private import http_util

    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", None)
    yield
    guard_server()


async def ways_of(*requests: tuple[str, str]) -> list[str]:
    """Which application a front hands each request (method and path) to."""
    taken: list[str] = []

    def noting(name: str) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            taken.append(name)

        return application

    guard_server(Shortcut(noting("straight"), asyncio.get_running_loop()))
    front = Front(noting("serve"))
    for method, path in requests:
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        await front(scope, Messages(), Messages().send)
    return taken


async def test_predictions_go_past_serve_and_nothing_else(unguarded: None):
    straight = await ways_of(("POST", "/predict"), ("POST", "/batch_predict"))
    assert straight == ["straight", "straight"]
    others = await ways_of(("GET", "/predict"), ("POST", "/explain"), ("POST", "/a/predict"), ("GET", "/health"))
    assert others == ["serve"] * 4


async def test_on_another_loop_than_the_classifier_s_predictions_go_through_serve(unguarded: None):
    """Where Serve is not throughput-optimised, its HTTP server has a loop of its own."""
    other = asyncio.new_event_loop()
    other.close()
    guard_server(Shortcut(refused, other))
    served: list[str] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    await Front(serve)(scope, Messages(), Messages().send)
    assert served == ["/predict"]


class Messages:
    """What a server has received of a request; waits for more when that is read."""

    def __init__(self, *messages: Message) -> None:
        self._messages, self.sent = asyncio.Queue[Message](), list[Message]()
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        self._messages.put_nowait(message)

    async def __call__(self) -> Message:
        return await self._messages.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)


HALF, REST = ({"type": "http.request", "body": b"a", "more_body": more} for more in (True, False))
GONE = {"type": "http.disconnect"}


async def refused(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("this is not asked")


async def read_all(receive: Receive) -> None:
    while (message := await receive()).get("more_body"):
        pass
    if message == GONE:
        raise asyncio.CancelledError


async def test_the_answer_of_a_client_that_stays_is_sent():
    received = Messages(HALF, REST)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await answer_while_connected(application, {}, received, received.send)
    assert [message["status"] for message in received.sent] == [200]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "something still waits for the client to go"


@pytest.mark.parametrize("before", [(), (HALF,), (HALF, REST)])
async def test_a_request_ends_when_its_client_goes_away(before: tuple[Message, ...]):
    received, ends = Messages(*before), list[str]()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_all(receive)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    request = asyncio.create_task(answer_while_connected(application, {}, received, received.send))
    await asyncio.sleep(0.01)
    received.add(GONE)
    await asyncio.wait_for(request, 5)
    assert (ends, received.sent, request.cancelling()) == (["cancelled"], [], 0)


async def test_a_server_that_cancels_a_request_is_told_so():
    received = Messages(REST)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await asyncio.sleep(60)

    request = asyncio.create_task(answer_while_connected(application, {}, received, received.send))
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(request, 5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_fails_fails_and_nothing_goes_on_watching():
    received = Messages(REST)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await answer_while_connected(application, {}, received, received.send)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """The port of the HTTP server that Ray Serve runs in replicas, with ``app`` behind ``answer_while_connected``."""

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        await answer_while_connected(app, scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(whole, host="127.0.0.1", port=0, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


async def test_with_a_real_server_answers_arrive_and_whoever_goes_is_given_up():
    """It all stands on when uvicorn says that a client is gone: not while it waits, nor before the answer is sent."""
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        if scope["path"] == "/slow":
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                given_up.set()
                raise
        await asyncio.sleep(0.01)
        await Response("answer")(scope, receive, send)

    async with serving(application) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):  # on one connection
            writer.write(b"POST /fast HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbo")
            await asyncio.sleep(0.01)
            writer.write(b"dy")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(6) == b"answer"
        writer.write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
        await asyncio.wait_for(begun.wait(), 5)
        assert not given_up.is_set()
        writer.close()
        await asyncio.wait_for(given_up.wait(), 5)
