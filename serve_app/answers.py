"""What the classifier tells the gateway: an answer, or why there is none. Values, not exceptions, because Serve logs
exceptions with tracebacks; in a module of their own, because a gateway has no use for torch."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app import errors
from serve_app.errors import ErrorCode, ServiceError


@dataclass(frozen=True)
class Answer:
    """Probabilities, [texts][classes] in the order of ``labels``, all by ``version``; seconds spent per phase."""

    version: str
    labels: tuple[str, ...]
    probabilities: list[list[float]]
    truncated: list[bool]
    phases: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """What every word of a text did for ``explained_label``, by ``version``.

    ``probabilities``: [classes] in the order of ``labels``. ``words``: begin and end in the text, characters, and
    attribution, nats. The log odds of the label, nats, are those of the text and of the baseline without words.
    """

    version: str
    labels: tuple[str, ...]
    probabilities: list[float]
    truncated: bool
    explained_label: str
    words: list[tuple[int, int, float]]
    baseline: str
    log_odds: float
    baseline_log_odds: float
    completeness_gap: float
    phases: dict[str, float]


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer; ``retry_after_s`` goes with OVERLOADED."""

    code: ErrorCode
    message: str = ""
    retry_after_s: int = 1

    def as_error(self) -> ServiceError:
        """What the client is told."""
        match self.code:
            case ErrorCode.OVERLOADED:
                return errors.overloaded(self.retry_after_s)
            case ErrorCode.NOT_READY:
                return errors.not_ready()
            case ErrorCode.DRAINING:
                return errors.draining()
            case ErrorCode.DEADLINE_EXCEEDED:
                return ServiceError(self.code, "Not answered within the deadline.")
            case ErrorCode.INTERNAL:
                return ServiceError(self.code, "Something went wrong here; the request id finds it in the log.")
            case _:
                return ServiceError(self.code, self.message)
