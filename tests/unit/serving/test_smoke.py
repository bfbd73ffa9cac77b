"""The smoke test of a deployment, against services made of functions that each get one thing wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from configs.exit_codes import ExitCode
from serve_app import smoke as module
from serve_app.client import Client, NotReady, RetryPolicy
from serve_app.errors import ErrorCode, ServiceError
from serve_app.smoke import CheckFailed, smoke

LIMITS = {"max_length": 128, "max_text_chars": 100, "max_client_batch_size": 3, "max_body_bytes": 400,
          "deadline_ms": 1000}  # fmt: skip


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeService:
    """What a good service answers; each field is one thing to get wrong. ``versions``: of the replicas, per look."""

    def __init__(self) -> None:
        self.ready = True
        self.versions: list[list[str | None]] = [["3", "3"]]
        self.prediction: dict[str, Any] = {
            "label": "positive", "score": 0.9, "probabilities": {"negative": 0.1, "positive": 0.9}, "truncated": False,
            "model_version": "3",
        }  # fmt: skip
        self.refusal: str | None = "empty_text"
        self.key = ""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/ready":
            return httpx.Response(200) if self.ready else _error("not_ready")
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error("unauthorized")
        if request.url.path == "/info":
            versions = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
            return httpx.Response(200, json={
                "model_name": "reviews", "model_version": versions[0] if versions else None, "run_id": "r", "f1": 0.9,
                "labels": ["negative", "positive"], "precision": "bf16", "application_version": "0.1.0",
                "limits": LIMITS, "replicas": [{"version": version, "ready": True} for version in versions],
            })  # fmt: skip
        if not json.loads(request.content)["text"] and self.refusal is not None:
            return _error(self.refusal)
        return httpx.Response(200, json=self.prediction)

    def client(self, clock: Clock, api_key: str = "") -> Client:
        return Client("http://service", api_key=api_key, transport=httpx.MockTransport(self),
                      retry=RetryPolicy(max_retries=0), sleep=clock.sleep, clock=clock)  # fmt: skip


def _error(code: str) -> httpx.Response:
    error = ServiceError(ErrorCode(code), "as it is")
    return httpx.Response(error.code.status, json=error.envelope("request"))


def run(service: FakeService, **arguments: Any) -> list[str]:
    clock = Clock()
    given = {"version": "3", "timeout_s": 5.0, "sleep": clock.sleep, "clock": clock, **arguments}
    return list(smoke(service.client(clock), **given))


def test_a_good_service_passes() -> None:
    assert run(FakeService()) == [
        "ready",
        "2 replica(s) serve version 3 of reviews",
        "a text is positive (0.900), by version 3",
        "an empty text is refused",
    ]


def test_replicas_may_take_a_while_to_follow() -> None:
    service = FakeService()
    service.versions = [["2", "2"], ["2", "3"], ["3", "3"]]
    assert len(run(service)) == 4


def spoilt(change: Callable[[FakeService], None]) -> FakeService:
    service = FakeService()
    change(service)
    return service


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.versions.__setitem__(0, ["3", "2"]), "expected version 3 on every replica, found 3, 2 after 5 s"),
        (lambda s: s.versions.__setitem__(0, []), "no replica reports itself"),
        (lambda s: s.prediction.update(model_version="2"), "computed by version 2, expected 3"),
        (lambda s: s.prediction.update(probabilities={"bad": 0.1, "positive": 0.9}), "expected \\['negative'"),
        (lambda s: s.prediction.update(probabilities={"negative": 0.5, "positive": 0.9}), "sum up to 1.4"),
        (lambda s: s.prediction.update(label="negative"), "the most probable one positive"),
        (lambda s: setattr(s, "refusal", None), "an empty text was answered with positive"),
        (lambda s: setattr(s, "refusal", "invalid_request"), "gave invalid_request, expected empty_text"),
    ],
)  # fmt: skip
def test_a_fault_is_found_and_named(change: Callable[[FakeService], None], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        run(spoilt(change))


def test_without_a_version_whatever_is_served_will_do() -> None:
    service = FakeService()
    service.versions = [["2", "3"]]
    assert len(run(service, version=None)) == 4


def test_a_service_that_is_not_ready_fails() -> None:
    with pytest.raises(NotReady):
        run(spoilt(lambda s: setattr(s, "ready", False)))


def test_a_service_with_keys_must_refuse_strangers() -> None:
    service = FakeService()
    with pytest.raises(CheckFailed, match="without the API key was answered"):
        run(service, stranger=service.client(Clock()))
    service.key = "secret-of-this-test"
    clock = Clock()
    friend, stranger = service.client(clock, service.key), service.client(clock)
    lines = smoke(friend, stranger=stranger, sleep=clock.sleep, clock=clock)
    assert list(lines)[-1] == "a call without the API key is refused"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--url", "ftp://service"], ExitCode.USAGE, "base_url must be"),
        (["--url", "http://127.0.0.1:9", "--timeout", "0.5"], ExitCode.UNREACHABLE, "unreachable"),
    ],
)
def test_the_command_tells_what_is_wrong_by_its_exit_code(
    arguments: list[str], code: ExitCode, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIALGATE_API_KEY", "secret-of-this-test")
    assert module.main(arguments) == code
    printed = capsys.readouterr()
    assert told in printed.err
    assert "secret-of-this-test" not in printed.out + printed.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_interrupted(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """By a signal that comes while it asks a service that has not answered yet."""

    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), number)

    handler = type("Busy", (BaseHTTPRequestHandler,), {"do_GET": interrupt})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert module.main(["--url", f"http://127.0.0.1:{server.server_port}"]) == ExitCode.INTERRUPTED
        finally:
            signal.signal(signal.SIGINT, before)
            server.shutdown()
            thread.join()
    assert capsys.readouterr().err == "error: interrupted\n"
