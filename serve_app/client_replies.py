"""What the HTTP service answers, in types of ours: results, errors, and the reading of a reply.

A part of ``client.py``, which is what to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

_RETRYABLE_WITHOUT_ENVELOPE = frozenset({408, 429})  # and 5xx: Ray's proxy and what stands before it
_UNEXPECTED = "unexpected_reply"
_SHOWN = 200  # characters of a foreign message


@dataclass(frozen=True)
class Prediction:
    """The answer for one text. ``probabilities``: 0 to 1 by label, their sum is 1; ``score``: that of ``label``."""

    label: str
    score: float
    probabilities: Mapping[str, float]
    truncated: bool
    model_version: str


@dataclass(frozen=True)
class _Batch:
    predictions: list[Prediction]


@dataclass(frozen=True)
class Limits:
    """What the service takes. ``max_length``: tokens of a text, None while there is no model."""

    max_length: int | None
    max_text_chars: int
    max_client_batch_size: int
    max_body_bytes: int
    deadline_ms: int


@dataclass(frozen=True)
class Info:
    """What the service says of itself; the model's fields are None while there is none. ``replicas``: as they come."""

    model_name: str
    model_version: str | None
    run_id: str | None
    f1: float | None
    labels: tuple[str, ...] | None
    precision: str | None
    application_version: str
    limits: Limits
    replicas: tuple[Mapping[str, Any], ...]


class TrialgateError(Exception):
    """A call that failed.

    ``code``: that of the service's error reply, else ``unreachable``, ``deadline_exceeded`` or ``unexpected_reply``.
    ``status``: HTTP's, None without a reply. ``retryable``: whether the same call may succeed later. ``request_id``
    finds the request in the service's log. ``retry_after_s``: what the service asked to wait, seconds. ``places``:
    after ``predict_many``, the places (from 0) of the failed batch in the given texts.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        request_id: str,
        status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.request_id = message, code, request_id
        self.status, self.retryable, self.retry_after_s = status, retryable, retry_after_s
        self.places: range | None = None

    def __str__(self) -> str:
        told = f"{self.code}: {self.message}"
        if self.places is not None:
            told += f" (texts {self.places.start} to {self.places.stop - 1} of those given)"
        return f"{told} [request {self.request_id}]"

    def __reduce__(self) -> tuple[Any, ...]:  # an exception with keywords cannot otherwise leave its process
        return _restored, (type(self), self.message, dict(vars(self)))


class InvalidRequest(TrialgateError):
    """400, 413, 415, 422: what was sent cannot be answered; ``code`` says why (``text_too_long``, ...)."""


class Unauthorized(TrialgateError):
    """401: no API key or a wrong one."""


class Overloaded(TrialgateError):
    """429: the service has as much in work as it admits."""


class NotReady(TrialgateError):
    """503: no model yet (``not_ready``), or shutting down (``draining``)."""


class DeadlineExceeded(TrialgateError):
    """504 or 408: not answered within the service's deadline; without a status, within the call's own."""


class ServiceFailed(TrialgateError):
    """500 and other 5xx: a bug of the service (``internal``), or its proxy cannot reach it (``unexpected_reply``)."""


class Unreachable(TrialgateError):
    """No connection, or it broke before the reply was complete."""


class UnexpectedReply(TrialgateError):
    """Not a reply of this interface: is the address right?"""


_FAMILIES: dict[int, type[TrialgateError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    408: DeadlineExceeded,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (Prediction, _Batch, Info)}
Result = TypeVar("Result")


def error_of(reply: httpx.Response | Exception, request_id: str) -> TrialgateError | None:
    """What went wrong with a request, by its reply or by what kept it from one; None for 200."""
    if isinstance(reply, Exception):
        return _without_reply(reply, request_id)
    if reply.status_code == httpx.codes.OK:
        return None
    status = reply.status_code
    # A 503 or 504 that Ray's proxy sends reads like ours: what matters to a caller is the same.
    family = _FAMILIES.get(status) or (ServiceFailed if status >= 500 else UnexpectedReply)
    retry_after_s = _retry_after_s(reply)
    match _envelope(reply):
        case {"code": str(code), "message": str(message), "retryable": bool(retryable), **rest}:
            found = rest.get("request_id")
            return family(
                message,
                code=code,
                request_id=found if isinstance(found, str) else request_id,
                status=status,
                retryable=retryable,
                retry_after_s=retry_after_s,
            )
    return family(
        f"HTTP {status} without an error of the service: {reply.text[:_SHOWN]!a}",
        code=_UNEXPECTED,
        request_id=request_id,
        status=status,
        retryable=status >= 500 or status in _RETRYABLE_WITHOUT_ENVELOPE,
        retry_after_s=retry_after_s,
    )


def read(kind: type[Result], reply: httpx.Response, request_id: str) -> Result:
    """The body of a 200 reply as ``kind``: Prediction or Info. Fields that it does not know are ignored, so a newer
    service may say more. Raises UnexpectedReply."""
    try:
        result: Result = _ADAPTERS[kind].validate_json(reply.content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        where = ".".join(str(part) for part in problems[0]["loc"]) or "body"
        raise UnexpectedReply(
            f"HTTP 200, but the reply is not a {kind.__name__}: {where}: {problems[0]['msg']}"[: 2 * _SHOWN],
            code=_UNEXPECTED,
            request_id=request_id,
            status=reply.status_code,
        ) from None
    return result


def read_batch(reply: httpx.Response, texts: int, request_id: str) -> list[Prediction]:
    """The predictions of a 200 reply to a batch of ``texts`` texts. Raises UnexpectedReply."""
    predictions = read(_Batch, reply, request_id).predictions
    if len(predictions) != texts:
        message = f"HTTP 200, but with {len(predictions)} predictions for {texts} texts"
        raise UnexpectedReply(message, code=_UNEXPECTED, request_id=request_id, status=reply.status_code)
    return predictions


def _without_reply(problem: Exception, request_id: str) -> TrialgateError:
    if isinstance(problem, TimeoutError | httpx.TimeoutException) and not isinstance(problem, httpx.ConnectTimeout):
        message = "no reply within the deadline of this call"
        return DeadlineExceeded(message, code="deadline_exceeded", request_id=request_id, retryable=True)
    message = f"no reply: {type(problem).__name__}: {str(problem)[:_SHOWN]}"
    return Unreachable(message, code="unreachable", request_id=request_id, retryable=True)


def _envelope(reply: httpx.Response) -> Any:
    """The value of "error", if the body is a JSON object with one."""
    try:
        body = json.loads(reply.content)
    except (ValueError, RecursionError):
        return None
    return body.get("error") if isinstance(body, dict) else None


def _retry_after_s(reply: httpx.Response) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is not used here and depends on both clocks."""
    given = reply.headers.get("retry-after", "").strip()
    return float(given[:20]) if given.isascii() and given.isdigit() else None


def _restored(kind: type[TrialgateError], message: str, attributes: dict[str, Any]) -> TrialgateError:
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error
