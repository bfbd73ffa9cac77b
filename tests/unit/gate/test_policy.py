"""The policy's checks: they inform, block when they are switched on, and never help a failing rule."""

from __future__ import annotations

from typing import Any

import pytest

from configs.gate import GateConfig
from gate.behaviour import BehaviourReport, SuiteReport
from gate.behaviour import TestReport as BehaviourTest
from gate.policy import Evidence, judge_evidence
from gate.rule import NOT_ROLLED_BACK, RULE, Check
from tests.unit.gate.evidence import evidence

FACTS = {"candidate_score", NOT_ROLLED_BACK}


def _checks(evidence: Evidence, **policy: Any) -> tuple[str, dict[str, Check]]:
    found = judge_evidence(evidence, GateConfig(**policy), force=False)
    return found.outcome, {check.name: check for check in found.checks}


def test_by_default_only_the_rule_blocks() -> None:
    outcome, checks = _checks(evidence(0.905, 0.90))
    assert outcome == "pass"
    assert {name for name, check in checks.items() if check.blocking} == {*FACTS, "production_score", RULE}
    assert not checks["significance"].passed
    assert {"class_f1", "calibration", "significance", "slices", "agreement", "latency"} <= checks.keys()


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ({"require_significant": True}, "significance"),
        ({"max_slice_regression": 0.0}, "slices"),
        ({"min_class_f1": 0.99}, "class_f1"),
        ({"max_ece": 0.001}, "calibration"),
        ({"max_latency_ratio": 1.5}, "latency"),
        ({"min_agreement": 0.999}, "agreement"),
    ],
)
def test_each_check_blocks_when_it_is_switched_on(policy: dict[str, Any], name: str) -> None:
    found = evidence(0.905, 0.90, latency_ms=20.0)
    assert found.comparison is not None
    found.comparison.slices[0].candidate_f1 = found.comparison.slices[0].production_f1 - 0.01
    assert _checks(found)[0] == "pass"
    outcome, checks = _checks(found, **policy)
    assert outcome == "blocked"
    assert [check.name for check in checks.values() if check.blocking and not check.passed] == [name]
    forced = judge_evidence(found, GateConfig(**policy), force=True)
    assert (forced.outcome, forced.reason) == ("forced", f"forced against: {checks[name].message}")


@pytest.mark.parametrize(
    "policy",
    [
        {"require_significant": True}, {"max_slice_regression": 0.05}, {"min_class_f1": 0.5}, {"max_ece": 0.2},
        {"max_latency_ratio": 1.5}, {"min_agreement": 0.5},
    ],
)  # fmt: skip
def test_a_clearly_better_candidate_passes_each(policy: dict[str, Any]) -> None:
    assert _checks(evidence(0.95, 0.85), **policy)[0] == "pass"


def test_no_check_helps_a_failing_rule() -> None:
    everything = {"require_significant": True, "max_slice_regression": 1.0, "min_class_f1": 0.0, "max_ece": 1.0,
                  "max_latency_ratio": 1000.0, "min_agreement": 0.0}  # fmt: skip
    outcome, checks = _checks(evidence(0.85, 0.90), **everything)
    assert outcome == "blocked"
    assert not checks[RULE].passed


def test_without_production_there_is_nothing_to_compare() -> None:
    outcome, checks = _checks(evidence(0.92, None), require_significant=True, min_agreement=1.0, max_latency_ratio=0.1)
    assert outcome == "pass"
    assert checks.keys() == {*FACTS, RULE, "class_f1", "calibration"}


def test_production_without_a_score_blocks_what_needs_it() -> None:
    found = evidence(0.95, 0.90).model_copy(update={"production": None, "comparison": None, "production_speed": None})
    outcome, checks = _checks(found, require_significant=True, max_slice_regression=0.1, min_agreement=0.1,
                              max_latency_ratio=10.0)  # fmt: skip
    assert outcome == "blocked"
    for name in ("significance", "slices", "agreement", "latency"):
        assert not checks[name].passed
        assert checks[name].blocking
        assert "cannot be computed" in checks[name].message
    assert "the rule cannot be applied: production's F1 is missing" in checks[RULE].message


def test_small_slices_are_not_judged_and_it_says_so() -> None:
    found = evidence(0.95, 0.90, texts=80)
    outcome, checks = _checks(found)
    assert outcome == "pass"
    assert checks["slices"].message == "no slice to compare; 1 of fewer than 50 texts not judged"
    outcome, checks = _checks(found, max_slice_regression=1.0)
    assert outcome == "blocked"
    assert "cannot be computed: no slice to compare; 1 of fewer than 50 texts" in checks["slices"].message


def test_behaviour_blocks_below_its_minimum() -> None:
    tests = [BehaviourTest(capability="negation", type="MFT", description="d", cases=10, failures=4, examples=[])]
    found = evidence(0.95, 0.90)
    found.behaviour = BehaviourReport.of([SuiteReport(name="s", digest="d", tests=tests)])
    assert _checks(found)[0] == "pass"
    assert _checks(found, min_behaviour={"negation": 0.6})[0] == "pass"
    assert _checks(found, min_behaviour={"negation": 0.7})[0] == "blocked"
    assert _checks(found, min_behaviour={"typos": 0.1})[0] == "blocked"
