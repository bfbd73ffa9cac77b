"""Every error code of the HTTP interface, its status and its envelope: the one place that maps them."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """The ``code`` of an error reply."""

    BAD_JSON = "bad_json"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_REQUEST = "invalid_request"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    BATCH_TOO_LARGE = "batch_too_large"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS[self]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self in _RETRYABLE


_STATUS = {
    ErrorCode.BAD_JSON: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.INVALID_REQUEST: 422,
    ErrorCode.EMPTY_TEXT: 422,
    ErrorCode.TEXT_TOO_LONG: 422,
    ErrorCode.BATCH_TOO_LARGE: 422,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.INTERNAL: 500,
    ErrorCode.NOT_READY: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}
# `internal` is a bug: the same request meets it again.
_RETRYABLE = frozenset({ErrorCode.OVERLOADED, ErrorCode.NOT_READY, ErrorCode.DRAINING, ErrorCode.DEADLINE_EXCEEDED})


class ServiceError(Exception):
    """A request that is refused or failed: what the client is told.

    ``headers`` go with the reply (``Retry-After``, ``Allow``, ...). ``message`` is shown to the client: no internals.
    """

    def __init__(self, code: ErrorCode, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, dict(headers or {})

    def envelope(self, request_id: str) -> dict[str, dict[str, str | bool]]:
        """The JSON body of the reply."""
        return {
            "error": {
                "code": self.code.value,
                "message": self.message,
                "retryable": self.code.retryable,
                "request_id": request_id,
            }
        }


def overloaded(retry_after_s: int) -> ServiceError:
    """Admission refused; the client may come back after ``retry_after_s`` seconds."""
    return ServiceError(
        ErrorCode.OVERLOADED,
        f"The service has more to do than it can answer in time; try again in {retry_after_s} s.",
        {"Retry-After": str(retry_after_s)},
    )


def not_ready(message: str = "No model is loaded yet.") -> ServiceError:
    """No replica can answer now."""
    return ServiceError(ErrorCode.NOT_READY, message, {"Retry-After": "2"})


def draining() -> ServiceError:
    """The service is shutting down."""
    return ServiceError(ErrorCode.DRAINING, "The service is shutting down.", {"Retry-After": "5"})


def deadline_exceeded(deadline_s: float) -> ServiceError:
    """Not answered in time."""
    return ServiceError(ErrorCode.DEADLINE_EXCEEDED, f"Not answered within {deadline_s:g} s of the first byte.")
