"""What the classifier tells the gateway: an answer, or why there is none. Values, not exceptions, because Serve logs
exceptions with tracebacks; in a module of their own, because a gateway has no use for torch."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import ErrorCode


@dataclass(frozen=True)
class Answer:
    """Probabilities, [texts][classes] in the order of ``labels``, all by ``version``; seconds spent per phase."""

    version: str
    labels: tuple[str, ...]
    probabilities: list[list[float]]
    truncated: list[bool]
    phases: dict[str, float]


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer; ``retry_after_s`` goes with OVERLOADED."""

    code: ErrorCode
    message: str = ""
    retry_after_s: int = 1
