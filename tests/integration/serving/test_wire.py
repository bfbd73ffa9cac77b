"""The HTTP contract on the wire: what no client library sends, and what a load balancer or an attacker does."""

from __future__ import annotations

import select

import httpx
import pytest

from tests.conftest import RayCluster
from tests.integration.serving.test_access_log import access_lines
from tests.integration.serving.wire import Reply, connect, head, read_reply, send
from tests.integration.serving.world import Service, wait_until

pytestmark = pytest.mark.usefixtures("unharmed")
JSON = [("Content-Type", b"application/json")]
TEXT = b'{"text": "good"}'


def check(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.error["code"]) == (status, code)
    assert reply.header("content-type") == ["application/json"]
    check_headers(reply)
    assert reply.error["request_id"] == reply.header("x-request-id")[0]


def check_headers(reply: Reply) -> None:
    for name in ("x-request-id", "x-model-version", "server-timing"):
        assert len(reply.header(name)) == 1, name


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        ([b"an id"], b"an id"),
        ([b"x" * 128], b"x" * 128),
        ([b"%0d%0aSet-Cookie: a"], b"%0d%0aSet-Cookie: a"),
        ([b"one", b"two"], b"one"),
        ([b"one", b"caf\xe9"], b"one"),
        ([], None),
        ([b""], None),
        ([b"x" * 129], None),
        ([b"caf\xe9"], None),
        (["café".encode()], None),
        ([b"\xff\xfe"], None),
        ([b"a\tb"], None),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/nowhere"])
def test_one_request_id_whatever_is_sent(service: Service, path: str, given: list[bytes], echoed: bytes | None):
    reply = send(service, "GET", path, [("X-Request-ID", value) for value in given])
    assert reply.status == (200 if path == "/health" else 404)
    check_headers(reply)
    (found,) = reply.header("x-request-id")
    assert 1 <= len(found) <= 128
    if echoed is None:
        assert found.encode("latin-1") not in given
    else:
        assert found.encode() == echoed


@pytest.mark.parametrize(
    "header",
    [
        ("x-request-timeout-seconds", b"\xff"),
        ("x-request-timeout-seconds", b"0"),  # would lift Serve's timeout; ours stands
        ("x-request-timeout-seconds", b"nan"),
        ("x-request-disconnect-disabled", b"\xff"),
        ("serve_multiplexed_model_id", b"\xff"),
        ("x-session-id", b"\xff"),
        ("traceparent", b"\xff"),
        ("x-forwarded-for", b"\xff"),
        ("x-forwarded-prefix", b"/nowhere"),
        ("Cookie", b"a" * 20_000),
        ("Expect", b"something"),
        ("Upgrade", b"h2c"),
        ("Range", b"bytes=0-1"),
        ("Accept", b"text/xml"),
    ],
)
def test_headers_that_are_not_for_us_change_nothing(service: Service, header: tuple[str, bytes]):
    reply = send(service, "POST", "/predict", [*JSON, header], TEXT)
    assert reply.status == 200
    check_headers(reply)


def test_the_media_type_is_asked_for(service: Service):
    for headers in ([], [("Content-Type", b"\xff")], [*JSON, ("Content-Type", b"text/plain")]):
        check(send(service, "POST", "/predict", headers, TEXT), 415, "unsupported_media_type")
    for path in ("/predict", "/batch_predict", "/explain"):
        check(send(service, "POST", path, JSON, b""), 400, "bad_json")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405_and_told_which_are_not(service: Service, method: str):
    for path, allowed in (("/predict", "POST"), ("/explain", "POST"), ("/health", "GET"), ("/", "GET")):
        reply = send(service, method, path)
        assert reply.header("allow") == [allowed]
        if method == "HEAD":
            assert (reply.status, reply.body) == (405, b"")
            check_headers(reply)
        else:
            check(reply, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/predict/", "//predict", "/PREDICT", "/predict;a", "/predict%2f", "/predict%00", "/../predict", "/%ff",
             "/redoc", "/docs/", "/" + "a" * 10_000]
)  # fmt: skip
def test_other_paths_are_404(service: Service, path: str):
    check(send(service, "POST", path, JSON, TEXT), 404, "not_found")


def test_a_query_changes_nothing(service: Service):
    assert send(service, "POST", "/predict?text=bad&truncate=maybe", JSON, TEXT).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET\r\n\r\n",
        b"\x00" * 200,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET /health HTTP/1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"BREW /predict HTTP/1.1\r\nHost: a\r\n\r\n",
        head("POST", "/predict", [*JSON, ("Content-Length", b"-1")]),
        head("POST", "/predict", [*JSON, ("Content-Length", b"9" * 30)]),
        head("POST", "/predict", [*JSON, ("Content-Length", b"5"), ("Content-Length", b"6")]),
        head("POST", "/predict", [*JSON, ("Content-Length", b"5"), ("Transfer-Encoding", b"chunked")]) + b"0\r\n\r\n",
        head("POST", "/predict", [*JSON, ("Transfer-Encoding", b"chunked")]) + b"zz\r\n{\r\n",
        head("POST", "/predict", [*JSON, ("Transfer-Encoding", b"gzip, chunked")]) + b"0\r\n\r\n",
        head("GET", "/health", [("a", b"b\x00c")]),
        head("GET", "/health", [("a b", b"c")]),
        head("GET", "/health", [("a", b"b" * 200_000)]),
    ],
)
def test_what_is_not_http_is_refused_before_it_reaches_us(service: Service, request_bytes: bytes):
    with connect(service) as connection:
        connection.sendall(request_bytes)
        assert 400 <= read_reply(connection).status < 500


def test_a_body_of_20_mb_is_refused_unread(service: Service, ray_cluster: RayCluster):
    headers = {"content-type": "application/json", "x-request-id": "announced-20-mb"}
    reply = httpx.post(f"{service.url}/predict", content=b" " * 20_000_000, headers=headers, timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "payload_too_large")
    headers["x-request-id"] = "chunked-20-mb"
    reply = httpx.post(f"{service.url}/explain", content=iter([b" " * 1000] * 20_000), headers=headers, timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "payload_too_large")

    logs = ray_cluster.temp_dir / "session_latest" / "logs"
    wait_until(lambda: all(access_lines(logs, name) for name in ("announced-20-mb", "chunked-20-mb")), 20)
    (announced,), (chunked,) = (access_lines(logs, name) for name in ("announced-20-mb", "chunked-20-mb"))
    assert announced["body_bytes"] == 0
    assert 20_000 < chunked["body_bytes"] < 400_000  # one piece beyond the limit, however large HAProxy made it


def test_a_client_that_asks_first_sends_nothing_of_a_body_that_is_too_large(service: Service):
    asking = [*JSON, ("Expect", b"100-continue"), ("Content-Length", b"20000000")]
    with connect(service) as connection:
        connection.sendall(head("POST", "/predict", asking))
        check(read_reply(connection), 413, "payload_too_large")


def test_a_client_that_asks_first_is_answered(service: Service):
    expecting = [*JSON, ("Expect", b"100-continue"), ("Content-Length", str(len(TEXT)).encode())]
    with connect(service) as connection:
        connection.sendall(head("POST", "/predict", expecting))
        assert select.select([connection], [], [], 20)[0]
        connection.sendall(TEXT)
        assert read_reply(connection).status == 200


def test_requests_one_after_the_other_on_one_connection(service: Service):
    """A refusal leaves nothing of its body behind that would be taken for the next request."""
    smuggled = head("GET", "/nowhere")
    with connect(service) as connection:
        for body, status in ((b"x" * 30_000, 413), (TEXT, 200), (smuggled, 400), (b"", 400), (TEXT, 200)):
            length = ("Content-Length", str(len(body)).encode())
            connection.sendall(head("POST", "/predict", [*JSON, length]) + body)
            reply = read_reply(connection)
            assert reply.status == status
            check_headers(reply)
