"""The gate's rule, as a pure function, and how checks come to a verdict. No MLflow, no files, no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

RULE: Final = "f1_rule"
NOT_ROLLED_BACK: Final = "not_rolled_back"


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
    """One condition that was looked at, with the number that was found and its limit where it has one.

    ``blocking``: False for one that informs only. ``forced``: it failed and was overridden.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    passed: bool
    message: str
    value: float | None = None
    limit: float | None = None
    blocking: bool = True
    overridable: bool = True
    forced: bool = False


def conclude(checks: list[Check], *, force: bool) -> tuple[Literal["pass", "forced", "blocked"], str]:
    """Puts checks together: what happens, and the reason in one line. Marks the checks that ``force`` overrode."""
    failed = [check for check in checks if check.blocking and not check.passed]
    if not failed:
        return "pass", next((check.message for check in checks if check.name == RULE), "every check passed")
    hard = [check for check in failed if not check.overridable]
    if hard or not force:
        return "blocked", "; ".join(check.message for check in hard or failed)
    for check in failed:
        check.forced = True
    return "forced", "forced against: " + "; ".join(check.message for check in failed)
