"""The gate's rule and how checks are put together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.exit_codes import ExitCode
from gate.decision import Decision
from gate.rule import NOT_ROLLED_BACK, RULE, Check, conclude, decide

NAN, INF = float("nan"), float("inf")
UNIT = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("candidate", "production", "exists", "passed", "words"),
    [
        (0.9, 0.9, True, True, "equals production's F1"),
        (0.9, math.nextafter(0.9, 1.0), True, False, "is below production's F1"),
        (math.nextafter(0.9, 1.0), 0.9, True, True, "is above production's F1"),
        (0.1, 0.05, True, True, "is above"),  # the minimum plays no part once there is a production model
        (0.0, 0.0, True, True, "equals"),
        (0.85, None, False, True, "equals the minimum F1"),
        (0.8499999, None, False, False, "is below the minimum F1"),
        (0.99, None, False, True, "is above the minimum F1"),
        (1.0, 1.0, True, True, "equals"),
    ],
)
def test_rule(candidate: float, production: float | None, exists: bool, passed: bool, words: str) -> None:
    verdict = decide(candidate, production, exists, 0.85)
    assert verdict.passed is passed
    assert not verdict.error
    assert words in verdict.reason


@pytest.mark.parametrize("bad", [None, NAN, INF, -INF, -0.1, 1.1, True, "0.9"])
def test_unusable_f1_blocks_on_either_side(bad: float) -> None:
    for verdict in (decide(bad, 0.5, True, 0.85), decide(bad, None, False, 0.0)):
        assert verdict.error
        assert not verdict.passed
        assert "the candidate's F1" in verdict.reason
    verdict = decide(0.99, bad, True, 0.0)
    assert verdict.error
    assert not verdict.passed
    assert "production's F1" in verdict.reason


def test_production_without_f1_is_not_no_production() -> None:
    assert decide(0.99, None, True, 0.5).error
    assert decide(0.99, 0.2, False, 0.5).error  # contradictory: an F1 of nothing
    assert decide(0.99, None, False, NAN).error


@given(UNIT, UNIT)
def test_rule_is_exactly_greater_or_equal(candidate: float, baseline: float) -> None:
    assert decide(candidate, baseline, True, 1.0).passed == (candidate >= baseline)
    assert decide(candidate, None, False, baseline).passed == (candidate >= baseline)


@given(UNIT, UNIT)
def test_reason_never_shows_two_different_f1s_alike(candidate: float, baseline: float) -> None:
    words = decide(candidate, baseline, True, 0.5).reason.split()
    if candidate != baseline and abs(candidate - baseline) > 1e-15:
        assert words[1] != words[-1]


def _check(name: str, passed: bool, overridable: bool = True) -> Check:
    return Check(name=name, passed=passed, message=f"{name} {'holds' if passed else 'fails'}", overridable=overridable)


def test_conclude_passes_only_when_every_check_does() -> None:
    assert conclude([_check(RULE, True), _check(NOT_ROLLED_BACK, True)], force=False) == ("pass", f"{RULE} holds")
    outcome, reason = conclude([_check(RULE, True), _check(NOT_ROLLED_BACK, False)], force=False)
    assert outcome == "blocked"
    assert reason == f"{NOT_ROLLED_BACK} fails"
    # no other check can make a failing rule pass
    assert conclude([_check(RULE, False), _check("other", True)], force=False)[0] == "blocked"


def test_a_check_that_only_informs_never_blocks_and_is_never_forced() -> None:
    note = Check(name="note", passed=False, message="worth knowing", blocking=False)
    assert conclude([_check(RULE, True), note], force=False) == ("pass", f"{RULE} holds")
    assert conclude([_check(RULE, False), note], force=True) == ("forced", f"forced against: {RULE} fails")
    assert not note.forced


def test_force_overrides_what_may_be_overridden_and_says_so() -> None:
    checks = [_check(RULE, False), _check(NOT_ROLLED_BACK, False), _check("other", True)]
    outcome, reason = conclude(checks, force=True)
    assert outcome == "forced"
    assert RULE in reason
    assert NOT_ROLLED_BACK in reason
    assert [check.forced for check in checks] == [True, True, False]
    assert conclude([_check("candidate_score", False, overridable=False)], force=True)[0] == "blocked"
    assert conclude([_check(RULE, True)], force=True)[0] == "pass"  # nothing was overridden


@pytest.mark.parametrize(
    ("decision", "code"),
    [("promoted", 0), ("forced", 0), ("would_promote", 0), ("rolled_back", 0), ("blocked", 3)],
)
def test_exit_codes(decision: str, code: int) -> None:
    made = Decision.model_validate({"decision": decision, "reason": "", "action": "promote", "model_name": "m"})
    assert made.exit_code == ExitCode(code)
