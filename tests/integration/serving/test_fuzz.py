"""Rubbish of every kind at the running service: each gets one clean refusal, and nobody else notices."""

from __future__ import annotations

import json
import random
import select
import socket

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import ErrorCode
from tests.integration.serving.test_contract import JSON, check_error, check_headers
from tests.integration.serving.wire import Reply, connect, head, read_reply, send
from tests.integration.serving.world import Service

pytestmark = pytest.mark.usefixtures("unharmed")
ROUTES = ["/predict", "/batch_predict", "/explain"]
VALID = head("POST", "/predict", [("Content-Type", b"application/json"), ("Content-Length", b"33")])
VALID += b'{"text": "good", "truncate": true}'
A_MOMENT_S = 0.1  # for a request that may never be answered, since it may never end

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())  # surrogates too
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=10,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "text": scalars | values,
        "texts": st.lists(scalars, max_size=10) | values,
        "truncate": st.booleans() | values,
        "label": st.sampled_from(["negative", "positive"]) | values,
    },
)
bodies = st.binary(max_size=200) | (fields | values).map(lambda value: json.dumps(value).encode())
header_names = st.text("abcdefghijklmnopqrstuvwxyz-_0123456789!#$%&'*+.^`|~", min_size=1, max_size=20)
header_values = st.binary(max_size=60).map(lambda value: bytes(byte for byte in value if byte > 31 and byte != 127))
known_headers = st.sampled_from(
    "authorization x-api-key x-request-id accept-encoding content-encoding x-forwarded-for origin cookie te trailer "
    "x-request-timeout-seconds x-request-disconnect-disabled traceparent x-session-id serve_multiplexed_model_id "
    "content-language if-match range".split()
)


def check_answer(response: httpx.Response) -> None:
    """An answer, or one of the refusals that the contract has for a body."""
    if response.status_code == 200:
        check_headers(response)
        json.loads(response.text, parse_constant=pytest.fail)  # no NaN
    else:
        code = response.json()["error"]["code"]
        check_error(response, code)
        assert ErrorCode(code) not in (ErrorCode.INTERNAL, ErrorCode.NOT_READY, ErrorCode.DRAINING)
        assert len(response.content) < 2000
    assert "Traceback" not in response.text


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60, derandomize=True)
@given(body=bodies)
def test_any_body(service: Service, route: str, body: bytes):
    check_answer(service.client.post(route, content=body, headers=JSON))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 9_000 + b"]" * 9_000,
        b'{"text": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
        b'{"text": ' * 2_000 + b"1" + b"}" * 2_000,
        b'{"text": 1e999}',
        b'{"text": ' + b"9" * 5_000 + b"}",
        b'{"text": "a", "texts": ["a"], "truncate": -1e999}',
        b'{"text": "\\ud83d", "texts": ["\\udc00\\ud800"]}',
        b'{"text": "\\u0000", "texts": ["\\u0000"]}',
        b'{"text": "\x00"}',
        b'{"\\ud800": 1}',
        b'{"texts": [' + b"1," * 9_000 + b"1]}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(1_500)) + b"}",
        b"\xef\xbb\xbf{}",
        b" " * 20_000_000,
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_bodies_that_break_others(service: Service, route: str, body: bytes):
    response = service.client.post(route, content=body, headers=JSON)
    check_answer(response)
    assert response.status_code in (400, 413, 422)


@pytest.mark.parametrize(
    "text",
    ["a\u0000b good", "good \u202e\u200d", "\ufffe\uffff good", "\U0010ffff good", "good" * 500, "’" * 1999, "'\";--"],
)
def test_strange_texts_are_texts(service: Service, text: str):
    for route, body in (
        ("/predict", {"text": text}),
        ("/explain", {"text": text}),
        ("/batch_predict", {"texts": [text]}),
    ):
        assert service.client.post(route, json=body).status_code == 200


@settings(max_examples=60, derandomize=True)
@given(headers=st.lists(st.tuples(header_names | known_headers, header_values), max_size=6))
def test_any_headers(service: Service, headers: list[tuple[str, bytes]]):
    safe = [(name, value) for name, value in headers if name not in ("connection", "upgrade", "expect", "te")]
    reply = send(service, "POST", "/predict", [("Content-Type", b"application/json"), *safe], b'{"text": "good"}')
    check_clean(reply)


def check_clean(reply: Reply) -> None:
    """Refusals of HAProxy and of Serve's server are theirs, failures would be ours."""
    assert reply.status < 500 or reply.error["code"] == "deadline_exceeded"
    assert b"Traceback" not in reply.body


def test_requests_with_bytes_changed_lost_and_added(service: Service):
    chance = random.Random(7)
    answered = 0
    for _ in range(120):
        changed = bytearray(VALID)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(changed))
            match chance.randrange(3):
                case 0:
                    changed[place] = chance.randrange(256)
                case 1:
                    del changed[place : place + chance.randint(1, 8)]
                case _:
                    changed[place:place] = chance.randbytes(chance.randint(1, 8))
        with connect(service) as connection:
            connection.sendall(changed)
            if select.select([connection], [], [], A_MOMENT_S)[0]:
                answered += 1
                check_clean(read_reply(connection))
    assert answered > 60


def test_connections_that_are_given_up(service: Service):
    """At any byte of a request: closed, half closed, or reset."""
    for number in range(90):
        with connect(service) as connection:
            connection.sendall(VALID[: 1 + number * 2 % len(VALID)])
            match number % 3:
                case 0:
                    connection.shutdown(socket.SHUT_WR)
                case 1:
                    reset = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # SO_LINGER: on, 0 seconds
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                case _:
                    pass  # closed at the end


def test_a_client_that_reads_nothing_holds_up_nobody(service: Service):
    with connect(service) as connection:
        connection.sendall(VALID * 50)
        for _ in range(10):
            assert service.predict().status_code == 200
