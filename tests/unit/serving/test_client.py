"""The Python client, both kinds, against a service made of a function: no network, no waiting."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app import client as api
from serve_app.client import AsyncClient, Client, RetryPolicy
from serve_app.client_core import split
from serve_app.errors import ErrorCode, ServiceError

LIMITS = {"max_text_chars": 100, "max_client_batch_size": 3, "max_body_bytes": 400, "deadline_ms": 1000}
FAMILIES = {
    "bad_json": api.InvalidRequest,
    "unauthorized": api.Unauthorized,
    "not_found": api.UnexpectedReply,
    "method_not_allowed": api.UnexpectedReply,
    "payload_too_large": api.InvalidRequest,
    "unsupported_media_type": api.InvalidRequest,
    "invalid_request": api.InvalidRequest,
    "empty_text": api.InvalidRequest,
    "text_too_long": api.InvalidRequest,
    "batch_too_large": api.InvalidRequest,
    "overloaded": api.Overloaded,
    "not_ready": api.NotReady,
    "draining": api.NotReady,
    "deadline_exceeded": api.DeadlineExceeded,
    "internal": api.ServiceFailed,
}


def prediction(text: str) -> dict[str, Any]:
    """As the service's, with the text as its label, so that a crossed answer shows."""
    return {"label": text, "score": 1.0, "probabilities": {text: 1.0}, "truncated": False, "model_version": "3"}


def refusal(code: str, **headers: str) -> httpx.Response:
    error = ServiceError(ErrorCode(code), "as it is")
    return httpx.Response(error.code.status, json=error.envelope("of-the-service"), headers=headers)


class FakeService:
    """Answers from ``script`` while there is something in it (a reply or an exception), then as the service does."""

    def __init__(self, *script: httpx.Response | Exception, **limits: int) -> None:
        self.script, self.limits = list(script), {**LIMITS, **limits}
        self.requests: list[httpx.Request] = []
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            scripted = self.script.pop(0) if self.script else None
        if isinstance(scripted, Exception):
            raise scripted
        if scripted is None:
            return self.answer(request)
        return httpx.Response(scripted.status_code, headers=scripted.headers, content=scripted.content)  # of one use

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        match request.url.path:
            case "/predict":
                return httpx.Response(200, json=prediction(body["text"]))
            case "/batch_predict":
                answers = [prediction(text) for text in body["texts"]]
                return httpx.Response(200, json={"predictions": answers, "model_version": "3"})
            case "/info":
                return httpx.Response(200, json=self.info())
            case "/ready":
                return httpx.Response(200, json={"status": "ready"})
        raise AssertionError(request.url)

    def info(self) -> dict[str, Any]:
        return {
            "model_name": "m", "model_version": "3", "run_id": "r", "f1": 0.9, "labels": ["no", "yes"],
            "precision": "fp32", "application_version": "1", "limits": {"max_length": 64, **self.limits},
            "replicas": [{"replica": "a", "version": "3"}], "something_new": 1,
        }  # fmt: skip

    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept, self.oversleeps = 0.0, [], 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.oversleeps

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


class Asked:
    """One of the two clients, called the same way; ``time`` is its clock."""

    def __init__(self, asynchronous: bool, service: Callable[[httpx.Request], Any], **options: Any) -> None:
        self.time = Time()
        self._asynchronous = asynchronous
        self._options = {
            "transport": httpx.MockTransport(service), "clock": self.time.clock, "draw": lambda: 0.5,
            "sleep": self.time.sleep_async if asynchronous else self.time.sleep, **options,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not self._asynchronous:
                with Client("http://service", **self._options) as client:
                    return getattr(client, name)(*arguments, **options)

            async def ask() -> Any:
                async with AsyncClient("http://service", **self._options) as client:
                    return await getattr(client, name)(*arguments, **options)

            return asyncio.run(ask())

        return call


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asked(request: pytest.FixtureRequest) -> Callable[..., Asked]:
    return lambda service, **options: Asked(request.param, service, **options)


def test_predict_gives_a_typed_answer(asked):
    service = FakeService()
    answer = asked(service).predict("gut 🎬", truncate=False)
    assert answer == api.Prediction("gut 🎬", 1.0, {"gut 🎬": 1.0}, False, "3")
    (request,) = service.requests
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.content) == {"text": "gut 🎬", "truncate": False}


def test_info_is_typed_and_new_fields_are_no_trouble(asked):
    info = asked(FakeService()).info()
    assert (info.model_version, info.f1, info.labels) == ("3", 0.9, ("no", "yes"))
    assert info.limits == api.Limits(64, 100, 3, 400, 1000)
    assert info.replicas[0]["version"] == "3"


TEXTS = st.lists(st.text(max_size=40), max_size=30)


@given(TEXTS, st.integers(1, 8), st.integers(1, 500))
def test_splitting_loses_nothing_and_keeps_both_bounds(texts: list[str], max_texts: int, max_bytes: int):
    runs = split(texts, max_texts, max_bytes)
    assert [place for run in runs for place in run] == list(range(len(texts)))
    for run, after in zip(runs, [*runs[1:], range(0)], strict=False):
        assert 1 <= len(run) <= max_texts
        assert len(run) == 1 or size(texts[run.start : run.stop]) <= max_bytes
        if after:  # no smaller than it must be
            assert len(run) == max_texts or size(texts[run.start : run.stop + 1]) > max_bytes


def size(texts: list[str]) -> int:
    """Bytes of the longest request body with these texts (truncate false)."""
    body = json.dumps({"texts": texts, "truncate": False}, ensure_ascii=False, separators=(",", ":"))
    return len(body.encode("utf-8", "backslashreplace")) + 1  # as split counts: a comma after the last


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.booleans(), st.integers(1, 5), st.integers(1, 4))
def test_many_texts_come_back_in_order(texts: list[str], asynchronous: bool, batch: int, concurrency: int):
    service = FakeService(max_client_batch_size=batch, max_body_bytes=150)
    answers = Asked(asynchronous, service, concurrency=concurrency).predict_many(texts)
    assert [answer.label for answer in answers] == texts
    bodies = [request.content for request in service.requests if request.url.path == "/batch_predict"]
    sent = [json.loads(body)["texts"] for body in bodies]
    assert sorted(text for batch in sent for text in batch) == sorted(texts)
    assert all(len(texts) <= batch for texts in sent)
    assert all(len(body) <= 150 or len(texts) == 1 for body, texts in zip(bodies, sent, strict=True))


def test_limits_are_asked_for_once_and_again_when_they_were_lowered():
    service = FakeService()
    with Client("http://service", transport=httpx.MockTransport(service)) as client:
        client.predict_many(["a"] * 4)
        client.predict_many(["a"] * 4)
        assert service.paths().count("/info") == 1
        service.script = [refusal("batch_too_large")]
        with pytest.raises(api.InvalidRequest):
            client.predict_many(["a"] * 3)
        client.predict_many(["a"] * 4)
    assert service.paths().count("/info") == 2


def test_nothing_and_one_text_by_mistake(asked):
    service = FakeService()
    assert asked(service).predict_many([]) == []
    with pytest.raises(TypeError, match="use predict"):
        asked(service).predict_many("not a list")
    assert not service.requests


def test_an_unpaired_surrogate_is_sent_for_the_service_to_refuse(asked):
    service = FakeService(refusal("invalid_request"))
    with pytest.raises(api.InvalidRequest):
        asked(service).predict("ä \ud83d")
    assert json.loads(service.requests[0].content.decode("utf-8"))["text"] == "ä \ud83d"


def test_several_batches_are_in_flight_at_once_and_no_more_than_asked_for():
    together, running, most = threading.Barrier(3, timeout=60), 0, 0
    lock, service = threading.Lock(), FakeService(max_client_batch_size=1)

    def slow(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        if request.url.path == "/batch_predict":
            with lock:
                running += 1
                most = max(most, running)
            together.wait()  # passes only when three are here
            with lock:
                running -= 1
        return service(request)

    assert len(Asked(False, slow, concurrency=3).predict_many(["a"] * 9)) == 9
    assert most == 3


async def test_several_batches_are_in_flight_at_once_in_asyncio():
    together, running, most = asyncio.Barrier(3), 0, 0
    service = FakeService(max_client_batch_size=1)

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        if request.url.path == "/batch_predict":
            running += 1
            most = max(most, running)
            await together.wait()
            running -= 1
        return service(request)

    async with AsyncClient("http://service", transport=httpx.MockTransport(slow), concurrency=3) as client:
        assert len(await client.predict_many(["a"] * 9)) == 9
    assert most == 3


def test_a_failed_batch_fails_all_and_no_further_one_is_begun(asked):
    service = FakeService()
    service.script = [service.answer(httpx.Request("GET", "http://service/info"))]
    service.script += [httpx.Response(200, json={"predictions": [prediction("a")] * 3}), refusal("text_too_long")]
    with pytest.raises(api.InvalidRequest) as failed:
        asked(service, concurrency=1).predict_many(["a"] * 20)
    assert failed.value.code == "text_too_long"
    assert failed.value.places == range(3, 6)
    assert "texts 3 to 5" in str(failed.value)
    assert service.paths() == ["/info", "/batch_predict", "/batch_predict"]


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_of_the_service_has_its_type(asked, code: ErrorCode):
    service = FakeService(refusal(code, **{"retry-after": "7"}))
    with pytest.raises(api.TrialgateError) as failed:
        asked(service, retry=RetryPolicy(max_retries=0)).predict("a")
    error = failed.value
    assert type(error) is FAMILIES[code]
    assert (error.code, error.status, error.retryable) == (code.value, code.status, code.retryable)
    assert (error.message, error.request_id, error.retry_after_s) == ("as it is", "of-the-service", 7.0)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_what_the_service_calls_retryable_is_sent_again_and_nothing_else(asked, code: ErrorCode):
    service = FakeService(refusal(code))
    client = asked(service)
    if code.retryable:
        assert client.predict("a").label == "a"
        assert len(service.requests) == 2
    else:
        with pytest.raises(api.TrialgateError):
            client.predict("a")
        assert len(service.requests) == 1


PROXY = [
    (httpx.Response(500, text="Internal Server Error"), api.ServiceFailed),
    (httpx.Response(502, html="<html>"), api.ServiceFailed),
    (httpx.Response(503, json={"error": "a string"}), api.NotReady),
    (httpx.Response(504, json=[1]), api.DeadlineExceeded),
    (httpx.Response(408, text="Request timed out"), api.DeadlineExceeded),
    (httpx.Response(429, text="too many"), api.Overloaded),
    (httpx.ConnectError("refused"), api.Unreachable),
    (httpx.ConnectTimeout("silence"), api.Unreachable),
    (httpx.ReadError("reset"), api.Unreachable),
    (httpx.RemoteProtocolError("cut off"), api.Unreachable),
]


@pytest.mark.parametrize(("outcome", "kind"), PROXY)
def test_failures_before_the_service_are_retried(asked, outcome, kind):
    service = FakeService(outcome, outcome)
    assert asked(service).predict("a").label == "a"
    assert len({request.headers["x-request-id"] for request in service.requests}) == 1
    service = FakeService(*[outcome] * 10)
    with pytest.raises(kind) as failed:
        asked(service, retry=RetryPolicy(max_retries=3)).predict("a")
    assert type(failed.value) is kind
    assert failed.value.retryable
    assert failed.value.request_id == service.requests[0].headers["x-request-id"]
    assert len(service.requests) == 4


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (httpx.Response(400, html="<html>Bad request"), api.InvalidRequest),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), api.UnexpectedReply),
        (httpx.Response(404, text="Path '/predict' not found"), api.UnexpectedReply),
        (httpx.Response(200, html="<html>another service"), api.UnexpectedReply),
        (httpx.Response(200, json={"label": "a"}), api.UnexpectedReply),
        (httpx.Response(200, json={**prediction("a"), "score": "high"}), api.UnexpectedReply),
    ],
)
def test_what_is_not_of_this_service_is_not_retried(asked, reply, kind):
    service = FakeService(reply)
    with pytest.raises(kind) as failed:
        asked(service).predict("a")
    assert failed.value.code == "unexpected_reply"
    assert failed.value.status == reply.status_code
    assert len(service.requests) == 1


def test_a_batch_with_too_few_answers_is_refused(asked):
    short = httpx.Response(200, json={"predictions": [prediction("a")], "model_version": "3"})
    service = FakeService()
    service.script = [service.answer(httpx.Request("GET", "http://service/info")), short]
    with pytest.raises(api.UnexpectedReply, match="1 predictions for 2 texts"):
        asked(service).predict_many(["a", "b"])


def test_waits_are_what_the_service_asks_for_and_grow_without(asked):
    after = [refusal("overloaded", **{"retry-after": given}) for given in ("2", "3600", "-1", "Wed, 21 Oct 2026")]
    client = asked(FakeService(*after, refusal("not_ready")), deadline_s=100, retry=RetryPolicy(backoff_s=1))
    assert client.predict("a").label == "a"
    # half (as drawn) of 1, 2, 4, 5 and 5 s, on top of what was asked for: 2 s, 3600 cut to 10, and what cannot be read
    assert client.time.slept == [2.5, 11.0, 2.0, 2.5, 2.5]


@given(st.integers(0, 10_000), st.none() | st.floats(0, 1e20), st.floats(0, 1))
def test_waits_are_bounded(retry: int, retry_after_s: float | None, drawn: float):
    policy = RetryPolicy()
    wait_s = policy.wait_s(retry, retry_after_s, drawn)
    assert min(retry_after_s or 0, policy.retry_after_cap_s) <= wait_s
    assert wait_s <= policy.retry_after_cap_s + policy.backoff_cap_s


def test_a_call_ends_within_its_deadline_with_the_last_error(asked):
    service = FakeService(*[refusal("overloaded", **{"retry-after": "3"})] * 100)
    client = asked(service, deadline_s=10, retry=RetryPolicy(max_retries=1000, backoff_s=0))
    with pytest.raises(api.Overloaded) as failed:
        client.predict("a")
    assert failed.value.retry_after_s == 3
    assert client.time.slept == [3, 3, 3]
    assert [request.extensions["timeout"]["read"] for request in service.requests] == [10, 7, 4, 1]
    assert [request.extensions["timeout"]["connect"] for request in service.requests] == [5, 5, 4, 1]


def test_a_sleep_that_takes_too_long_does_not_hide_the_error(asked):
    service = FakeService(*[httpx.ConnectError("refused")] * 9)
    client = asked(service, deadline_s=1)
    client.time.oversleeps = 1.0
    with pytest.raises(api.Unreachable):
        client.predict("a")
    assert len(service.requests) == 1


def test_a_deadline_for_many_texts_bounds_all_of_them(asked):
    service = FakeService(max_client_batch_size=1)
    service.script = [service.answer(httpx.Request("GET", "http://service/info"))]
    service.script += [refusal("overloaded", **{"retry-after": "3"}), httpx.Response(500)] * 20
    client = asked(service, concurrency=1, retry=RetryPolicy(max_retries=1, backoff_s=0))
    with pytest.raises(api.ServiceFailed):
        client.predict_many(["a"] * 9, deadline_s=4)
    assert client.time.now == 3


def test_no_reply_in_time_is_the_deadline(asked):
    service = FakeService()

    def late(request: httpx.Request) -> httpx.Response:
        client.time.now += 31
        raise httpx.ReadTimeout("nothing came", request=request)

    client = asked(late)
    with pytest.raises(api.DeadlineExceeded) as failed:
        client.predict("a")
    assert (failed.value.code, failed.value.status, failed.value.retryable) == ("deadline_exceeded", None, True)
    assert not service.requests


async def test_in_asyncio_the_deadline_holds_against_a_reply_that_drips():
    async def drip(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with AsyncClient("http://service", transport=httpx.MockTransport(drip), deadline_s=0.05) as client:
        with pytest.raises(api.DeadlineExceeded):
            await client.predict("a")


def test_ready(asked):
    assert asked(FakeService()).ready() is True
    for outcome in (refusal("not_ready"), httpx.Response(404, text="not found"), httpx.ConnectError("refused")):
        service = FakeService(outcome)
        assert asked(service).ready() is False
        assert len(service.requests) == 1


def test_wait_until_ready_outlasts_everything_and_then_says_what_it_was(asked):
    starting = [httpx.ConnectError("refused"), httpx.Response(404, text="not found"), httpx.Response(500)]
    client = asked(FakeService(*starting, *[refusal("not_ready", **{"retry-after": "2"})] * 20))
    assert client.wait_until_ready() is None
    assert max(client.time.slept) <= 1
    client = asked(FakeService(*starting, *[refusal("not_ready")] * 1000))
    with pytest.raises(api.NotReady):
        client.wait_until_ready(timeout_s=20)
    assert 19 <= client.time.now <= 20


KEY = "a-key-that-nobody-may-see"


def test_the_key_comes_from_the_argument_or_the_environment(asked, monkeypatch):
    for variable, argument, sent in (
        ("", None, None),
        (KEY, None, f"Bearer {KEY}"),
        (KEY, "another", "Bearer another"),
        (KEY, "", None),
    ):
        monkeypatch.setenv("TRIALGATE_API_KEY", variable)
        service = FakeService()
        asked(service, api_key=argument).predict("a")
        assert service.requests[0].headers.get("authorization") == sent


def test_neither_text_nor_key_is_logged_or_told(asked, caplog):
    caplog.set_level(logging.DEBUG)
    failures = [refusal("overloaded"), httpx.ConnectError("refused"), httpx.Response(500), refusal("internal")]
    with pytest.raises(api.ServiceFailed) as failed:
        asked(FakeService(*failures), api_key=KEY).predict("a secret text")
    told = caplog.text + repr(failed.value) + str(failed.value) + repr(vars(failed.value))
    assert KEY not in told
    assert "secret" not in told


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}ä"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str):
    with pytest.raises(ValueError, match="api_key must be printable ASCII") as failed:
        Client(api_key=key)
    assert KEY not in str(failed.value)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "127.0.0.1:8000"},
        {"base_url": "ftp://host"},
        {"base_url": "http://user:password@host"},
        {"concurrency": 0},
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]):
    (name,) = options
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=name) as failed:
            kind(**options)
        assert "password" not in str(failed.value)


def test_an_address_with_a_path_keeps_it():
    service = FakeService(httpx.Response(200, json=prediction("a")))
    with Client("http://service/second/", transport=httpx.MockTransport(service)) as client:
        client.predict("a")
    assert str(service.requests[0].url) == "http://service/second/predict"


def test_errors_can_leave_their_process():
    with pytest.raises(api.Overloaded) as failed:
        Asked(False, FakeService(refusal("overloaded")), retry=RetryPolicy(max_retries=0)).predict("a")
    failed.value.places = range(3)
    copy = pickle.loads(pickle.dumps(failed.value))
    assert type(copy) is api.Overloaded
    assert str(copy) == str(failed.value)
    assert vars(copy) == vars(failed.value)
