"""The gate's rule, as a pure function, and what a decision is made of. No MLflow, no files, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.exit_codes import ExitCode, UsageError

Outcome = Literal["would_promote", "promoted", "forced", "blocked", "rolled_back"]

RULE = "f1_rule"
NOT_ROLLED_BACK = "not_rolled_back"


class GateUsageError(UsageError):
    """A run, version, model or option that does not exist or cannot be meant; names it and the fix (exit 2)."""


@dataclass(frozen=True)
class Verdict:
    """What the rule says. ``error``: an F1 could not be used at all, which blocks like a failing rule."""

    passed: bool
    reason: str
    error: bool = False


def decide(
    candidate_f1: float | None, production_f1: float | None, production_exists: bool, minimum_f1: float
) -> Verdict:
    """The mandatory rule. Both F1s (0 to 1) are of the same test split and the same definition of F1.

    With a production model, the candidate passes if its F1 is at least production's; without one, if it is at least
    ``minimum_f1``. An F1 that is missing, not finite or outside 0 to 1 blocks: it is never a zero, and a production
    model without an F1 is never "no production".
    """
    problem = _problem("the candidate's F1", candidate_f1)
    if production_exists:
        problem = problem or _problem("production's F1", production_f1)
    elif production_f1 is not None:
        problem = problem or "there is an F1 of production but no production model"
    else:
        problem = problem or _problem("the minimum F1", minimum_f1)
    if problem:
        return Verdict(False, problem, error=True)
    assert candidate_f1 is not None
    if production_exists:
        assert production_f1 is not None
        passed = candidate_f1 >= production_f1
        return Verdict(passed, _compared(candidate_f1, production_f1, passed, "production's F1"))
    passed = candidate_f1 >= minimum_f1
    return Verdict(passed, _compared(candidate_f1, minimum_f1, passed, "the minimum F1") + "; no production model yet")


def _problem(what: str, value: Any) -> str | None:
    if value is None:
        return f"{what} is missing"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{what} is {value!r}, not a number"
    if not math.isfinite(value):
        return f"{what} is {value}, not a finite number"
    if not 0.0 <= value <= 1.0:
        return f"{what} is {value}, expected 0 to 1"
    return None


def _compared(candidate: float, baseline: float, passed: bool, name: str) -> str:
    relation = "is below" if not passed else "equals" if candidate == baseline else "is above"
    digits = 4
    # Two numbers that differ must not be printed alike, or the sentence would contradict itself.
    while digits < 17 and candidate != baseline and f"{candidate:.{digits}f}" == f"{baseline:.{digits}f}":
        digits += 1
    return f"F1 {candidate:.{digits}f} {relation} {name} {baseline:.{digits}f}"


class Check(BaseModel):
    """One condition that was looked at. ``forced``: it failed and was overridden."""

    model_config = ConfigDict(extra="forbid")

    name: str
    passed: bool
    message: str
    overridable: bool = True
    forced: bool = False


class Decision(BaseModel):
    """A decision with all that led to it; the content of ``--json`` and of the artifact ``decision.json``."""

    model_config = ConfigDict(extra="forbid")

    decision: Outcome
    reason: str
    action: Literal["check", "promote", "rollback"]
    model_name: str
    run_id: str | None = Field(None, description="The candidate's trial run.")
    parent_run_id: str | None = None
    f1: float | None = None
    baseline_f1: float | None = Field(None, description="Production's F1 on the candidate's test split.")
    minimum_f1: float | None = None
    model_version: str | None = Field(None, description="The version that the decision is about, if registered.")
    baseline_version: str | None = Field(None, description="The version in production when it was decided.")
    production_version: str | None = Field(None, description="The version in production afterwards.")
    changed: bool = Field(False, description="Whether the alias production moved.")
    test_digest: str | None = None
    checks: list[Check] = Field(default_factory=list)
    candidate_score: dict[str, Any] | None = None
    baseline_score: dict[str, Any] | None = None
    forced_reason: str | None = Field(None, description="The reason given on the command line.")
    decision_id: str | None = Field(None, description="The MLflow run that records this decision.")
    decided_at: str | None = Field(None, description="UTC, ISO 8601.")
    decided_by: str | None = None

    @property
    def passed(self) -> bool:
        """Whether what was asked for happened (or would)."""
        return self.decision != "blocked"

    @property
    def exit_code(self) -> ExitCode:
        """OK or BLOCKED."""
        return ExitCode.OK if self.passed else ExitCode.BLOCKED


def conclude(checks: list[Check], *, force: bool) -> tuple[Literal["pass", "forced", "blocked"], str]:
    """Puts checks together: what happens, and the reason in one line. Marks the checks that ``force`` overrode."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return "pass", next((check.message for check in checks if check.name == RULE), "every check passed")
    hard = [check for check in failed if not check.overridable]
    if hard or not force:
        return "blocked", "; ".join(check.message for check in hard or failed)
    for check in failed:
        check.forced = True
    return "forced", "forced against: " + "; ".join(check.message for check in failed)
