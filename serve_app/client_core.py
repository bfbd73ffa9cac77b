"""What a call of the client does, without doing it: retries, deadlines, batches. A part of ``client.py``.

Calls are written once, as generators: each yields what is to be done next (``Send``, ``Pause``, ``AtOnce``), is told
the outcome, and returns the result. Who does it, with threads or with asyncio, is up to ``client.py``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import httpx

from serve_app.client_replies import Info, Limits, Prediction, TrialgateError, error_of, read, read_batch

API_KEY_VARIABLE: Final = "TRIALGATE_API_KEY"
_CONNECT_S = 5.0  # an address that swallows connections is tried again before the deadline
_JSON = {"content-type": "application/json"}
T = TypeVar("T")


def http_options(base_url: str, api_key: str | None, concurrency: int) -> dict[str, Any]:
    """Arguments for ``httpx.Client`` and ``httpx.AsyncClient``. Raises ValueError, with no key in the message."""
    address = httpx.URL(base_url)
    if address.scheme not in ("http", "https") or not address.host or address.userinfo:
        raise ValueError(f"base_url must be http://HOST:PORT or https://..., without a user, found {address!r}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, found {concurrency}")
    key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        source = API_KEY_VARIABLE if api_key is None else "api_key"
        raise ValueError(f"{source} must be printable ASCII without spaces around it")
    return {
        "base_url": address,
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "follow_redirects": False,  # a key goes to nobody else
        # With a limit httpcore closes idle connections above it, also one that another thread is about to use.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=None),
    }


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a request that failed retryably is sent again.

    Before retry n (from 0) it waits ``Retry-After``, cut at ``retry_after_cap_s``, plus a random part of
    ``min(backoff_cap_s, backoff_s * 2**n)``, so that clients refused together do not come back together
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, "full jitter"). Seconds.
    """

    max_retries: int = 8
    backoff_s: float = 0.1
    backoff_cap_s: float = 5.0
    retry_after_cap_s: float = 10.0

    def wait_s(self, retry: int, retry_after_s: float | None, drawn: float) -> float:
        """Seconds to wait before retry ``retry``; ``drawn``: 0 to 1, at random."""
        asked = min(retry_after_s or 0.0, self.retry_after_cap_s)
        return asked + drawn * min(self.backoff_cap_s, self.backoff_s * 2.0 ** min(retry, 60))


class Budget:
    """The time left of a call, and of the larger call that it is a part of."""

    def __init__(self, clock: Callable[[], float], seconds: float, whole: Budget | None = None) -> None:
        self._clock, self._whole, self._ends = clock, whole, clock() + seconds

    @property
    def remaining_s(self) -> float:
        """Seconds; 0 or less when it is over."""
        own = self._ends - self._clock()
        return own if self._whole is None else min(own, self._whole.remaining_s)

    def end(self) -> None:
        """Nothing that counts on it begins anything more."""
        self._ends = -math.inf


@dataclass(frozen=True)
class Send:
    """One HTTP request. The outcome is its reply, or the exception that there was instead."""

    method: str
    path: str
    request_id: str
    body: bytes | None = None
    timeout_s: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """For ``httpx``'s ``request``."""
        return {
            "method": self.method,
            "url": self.path,
            "content": self.body,
            "headers": {"x-request-id": self.request_id, **({} if self.body is None else _JSON)},
            "timeout": httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, _CONNECT_S)),
        }


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class AtOnce:
    """Calls, some at a time. The outcome is their results in order; if one fails, its error ends the call, and
    ``budget`` is ended, so that the others begin nothing more."""

    parts: list[Steps[Any]]
    budget: Budget


Steps = Generator[Send | Pause | AtOnce, Any, T]


class Calls:
    """The calls of one client. See ``Client`` for the arguments."""

    def __init__(
        self, deadline_s: float, retry: RetryPolicy, clock: Callable[[], float], draw: Callable[[], float]
    ) -> None:
        if not 0 < deadline_s < math.inf:
            raise ValueError(f"deadline_s must be above 0 and finite, found {deadline_s}")
        self._deadline_s, self._retry, self._clock, self._draw = deadline_s, retry, clock, draw
        self._limits: Limits | None = None

    def predict(self, text: str, truncate: bool) -> Steps[Prediction]:
        """See ``Client.predict``."""
        body = b'{"text":%s,"truncate":%s}' % (_json(text), _json(truncate))
        request_id = _new_id()
        reply = yield from self._exchange(Send("POST", "/predict", request_id, body), self._budget(), self._wait_s)
        return read(Prediction, reply, request_id)

    def predict_many(self, texts: Sequence[str], truncate: bool, deadline_s: float | None) -> Steps[list[Prediction]]:
        """See ``Client.predict_many``."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of texts, found one text: use predict")
        if not texts:
            return []
        whole = Budget(self._clock, math.inf if deadline_s is None else deadline_s)
        limits = self._limits
        if limits is None:
            self._limits = limits = (yield from self.info(whole)).limits
        batches = split(texts, limits.max_client_batch_size, limits.max_body_bytes)
        answers: list[list[Prediction]]
        answers = yield AtOnce([self._batch(texts, places, truncate, whole) for places in batches], whole)
        return [prediction for answer in answers for prediction in answer]

    def _batch(self, texts: Sequence[str], places: range, truncate: bool, whole: Budget) -> Steps[list[Prediction]]:
        request_id = _new_id()
        body = _batch_body([_json(texts[place]) for place in places], truncate)
        try:
            send = Send("POST", "/batch_predict", request_id, body)
            reply = yield from self._exchange(send, self._budget(whole), self._wait_s)
            return read_batch(reply, len(places), request_id)
        except TrialgateError as error:
            error.places = places
            if error.code in ("batch_too_large", "payload_too_large"):
                self._limits = None  # they were lowered: the next call asks again
            raise

    def info(self, whole: Budget | None = None) -> Steps[Info]:
        """See ``Client.info``; ``whole``: the call that this one is a part of."""
        request_id = _new_id()
        reply = yield from self._exchange(Send("GET", "/info", request_id), self._budget(whole), self._wait_s)
        return read(Info, reply, request_id)

    def ready(self) -> Steps[bool]:
        """See ``Client.ready``."""
        try:
            yield from self._exchange(Send("GET", "/ready", _new_id()), self._budget(), lambda error, retry: None)
        except TrialgateError:
            return False
        return True

    def wait_until_ready(self, timeout_s: float) -> Steps[None]:
        """See ``Client.wait_until_ready``."""
        # Whatever is wrong may pass: a Ray that is starting answers 404. And it is a look, so Retry-After is not meant.
        polling = replace(self._retry, backoff_cap_s=min(1.0, self._retry.backoff_cap_s))
        budget = Budget(self._clock, timeout_s)
        yield from self._exchange(
            Send("GET", "/ready", _new_id()), budget, lambda error, retry: polling.wait_s(retry, None, self._draw())
        )

    def _budget(self, whole: Budget | None = None) -> Budget:
        return Budget(self._clock, self._deadline_s, whole)

    def _wait_s(self, error: TrialgateError, retry: int) -> float | None:
        if not error.retryable or retry >= self._retry.max_retries:
            return None
        return self._retry.wait_s(retry, error.retry_after_s, self._draw())

    def _exchange(
        self, send: Send, budget: Budget, wait_s: Callable[[TrialgateError, int], float | None]
    ) -> Steps[httpx.Response]:
        """The 200 reply, after as many tries as ``wait_s(error, retry)`` gives a wait for and time allows.

        Raises TrialgateError: the last failure.
        """
        for retry in itertools.count():
            remaining_s = budget.remaining_s
            outcome: Any = (yield replace(send, timeout_s=remaining_s)) if remaining_s > 0 else TimeoutError()
            error = error_of(outcome, send.request_id)
            if error is None:
                break
            seconds = wait_s(error, retry)
            if seconds is None or seconds >= budget.remaining_s:
                raise error
            yield Pause(seconds)
            if budget.remaining_s <= 0:  # it slept longer than asked, or the larger call has ended
                raise error
        reply: httpx.Response = outcome
        return reply


def split(texts: Sequence[str], max_texts: int, max_bytes: int) -> list[range]:
    """Places of ``texts``, in order, in runs of at most ``max_texts`` texts whose request body has at most
    ``max_bytes`` bytes; a text that is too large alone gets a run of its own, and the service's refusal."""
    runs, start, empty = [], 0, len(_batch_body([], False))
    size = empty
    for place, text in enumerate(texts):
        added = len(_json(text)) + 1  # a comma
        if place > start and (place - start >= max_texts or size + added > max_bytes):
            runs.append(range(start, place))
            start, size = place, empty
        size += added
    return [*runs, range(start, len(texts))] if texts else []


def _batch_body(texts: Iterable[bytes], truncate: bool) -> bytes:
    return b'{"texts":[%s],"truncate":%s}' % (b",".join(texts), _json(truncate))


def _json(value: str | bool) -> bytes:
    """An unpaired surrogate, which UTF-8 cannot carry, becomes its JSON escape, and the service says where it is."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _new_id() -> str:
    return uuid.uuid4().hex
