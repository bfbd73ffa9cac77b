"""From evidence to a verdict: the rule, the checks that the policy switches on, and what follows. Pure.

The same function decides now and replays later, so what a recorded decision says can be checked from what it rests on.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.gate import GateConfig
from gate.behaviour import BehaviourReport, behaviour_checks
from gate.comparison import Comparison, Difference
from gate.evaluation import Score, Speed
from gate.rule import RULE, Check, conclude, decide

SMALLEST_SLICE: Final = 50  # texts; in fewer, a slice's F1 moves by chance more than any sensible limit


class Evidence(BaseModel):
    """What a decision rests on. ``production_version``: the number of the version in production, None if there is none.
    ``facts``: what was found on the way, such as a model that cannot be loaded."""

    model_config = ConfigDict(extra="forbid")

    production_exists: bool
    production_version: str | None = None  # None also in what earlier releases recorded
    candidate: Score | None = None
    production: Score | None = None
    comparison: Comparison | None = None
    candidate_speed: Speed | None = None
    production_speed: Speed | None = None
    behaviour: BehaviourReport | None = None
    facts: list[Check] = Field(default_factory=list)


class Conclusion(BaseModel):
    """What evidence and policy come to."""

    model_config = ConfigDict(extra="forbid")

    outcome: Literal["pass", "forced", "blocked"]
    reason: str
    checks: list[Check]


def scored_fact(name: str, score: Score) -> Check:
    """The fact that one side has this score."""
    message = f"F1 {score.intervals['f1']} on {score.texts} texts"
    return Check(name=name, passed=True, message=message, value=score.f1)


def judge_evidence(evidence: Evidence, policy: GateConfig, *, force: bool) -> Conclusion:
    """Applies rule and policy. A check that is switched on and cannot be computed fails; none makes the rule pass."""
    checks = [fact.model_copy() for fact in evidence.facts]
    checks.append(_rule(evidence, policy))
    if evidence.candidate is not None:
        checks += [_class_f1(evidence.candidate, policy), _calibration(evidence.candidate, policy)]
        if evidence.production_exists:
            checks += [
                _significance(evidence.comparison, policy),
                _slices(evidence.comparison, policy),
                _agreement(evidence.comparison, policy),
                _latency(evidence.candidate_speed, evidence.production_speed, policy),
            ]
    if evidence.behaviour is not None:
        checks += behaviour_checks(evidence.behaviour, policy.min_behaviour)
    outcome, reason = conclude(checks, force=force)
    return Conclusion(outcome=outcome, reason=reason, checks=checks)


def _rule(evidence: Evidence, policy: GateConfig) -> Check:
    candidate = evidence.candidate.f1 if evidence.candidate else None
    production = evidence.production.f1 if evidence.production else None
    verdict = decide(candidate, production, evidence.production_exists, policy.minimum_f1)
    message = f"the rule cannot be applied: {verdict.reason}" if verdict.error else verdict.reason
    limit = production if evidence.production_exists else policy.minimum_f1
    return Check(name=RULE, passed=verdict.passed, message=message, value=candidate, limit=limit)


def _class_f1(score: Score, policy: GateConfig) -> Check:
    worst = min(score.per_class, key=lambda name: score.per_class[name].f1)
    found = score.per_class[worst]
    return _limited(
        "class_f1",
        found.f1,
        policy.min_class_f1,
        f"smallest F1 of a class: {found.f1_interval} for '{worst}'",
        least=True,
    )


def _calibration(score: Score, policy: GateConfig) -> Check:
    message = f"expected calibration error {score.ece:.4f}, temperature {score.temperature:.3f}"
    return _limited("calibration", score.ece, policy.max_ece, message, least=False)


def _significance(comparison: Comparison | None, policy: GateConfig) -> Check:
    if comparison is None:
        return _missing("significance", blocking=policy.require_significant)
    difference = comparison.whole.difference
    says = "significantly better" if comparison.significant else "not significantly better"
    return Check(
        name="significance",
        passed=comparison.significant,
        message=f"{says}: F1 difference {_signed(difference.value)} [{_signed(difference.low)}, "
        f"{_signed(difference.high)}], {comparison.gained} texts gained, {comparison.lost} lost, "
        f"McNemar p = {comparison.mcnemar_p:.3g}",
        value=difference.low,
        limit=0.0,
        blocking=policy.require_significant,
    )


def _slices(comparison: Comparison | None, policy: GateConfig) -> Check:
    if comparison is None:
        return _missing("slices", blocking=policy.max_slice_regression is not None)
    judged = [each for each in comparison.slices if each.texts >= SMALLEST_SLICE]
    left_out = len(comparison.slices) - len(judged)
    rest = f"; {left_out} of fewer than {SMALLEST_SLICE} texts not judged" if left_out else ""
    if not judged:
        asked = policy.max_slice_regression is not None
        message = f"no slice to compare{rest}"
        if asked:
            message = (
                f"cannot be computed: {message}; put more texts into the test split, or unset max_slice_regression"
            )
        return Check(name="slices", passed=not asked, message=message, blocking=asked)
    worst = min(judged, key=lambda each: each.candidate_f1 - each.production_f1)
    return _limited("slices", _regression(worst), policy.max_slice_regression,
                    f"worst of {len(judged)} slices: '{worst.name}' from {worst.production_f1:.4f} to "
                    f"{worst.candidate_f1:.4f} on {worst.texts} texts{rest}", least=False)  # fmt: skip


def _agreement(comparison: Comparison | None, policy: GateConfig) -> Check:
    if comparison is None:
        return _missing("agreement", blocking=policy.min_agreement is not None)
    message = f"{comparison.agreement:.2%} of the texts are predicted as production predicts them"
    return _limited("agreement", comparison.agreement, policy.min_agreement, message, least=True)


def _latency(candidate: Speed | None, production: Speed | None, policy: GateConfig) -> Check:
    if candidate is None or production is None:
        return _missing("latency", blocking=policy.max_latency_ratio is not None)
    ratio = candidate.latency_ms / production.latency_ms
    message = (
        f"{ratio:.2f} times production's median latency ({candidate.latency_ms:.2f} against "
        f"{production.latency_ms:.2f} ms for one text)"
    )
    return _limited("latency", ratio, policy.max_latency_ratio, message, least=False)


def _limited(name: str, value: float, limit: float | None, message: str, *, least: bool) -> Check:
    """A check that blocks if there is a ``limit``, which is the least or the most that ``value`` may be."""
    if limit is None:
        return Check(name=name, passed=True, message=message, value=value, blocking=False)
    passed = value >= limit if least else value <= limit
    message = f"{message}; at {'least' if least else 'most'} {limit:g} is required"
    return Check(name=name, passed=passed, message=message, value=value, limit=limit)


def _missing(name: str, *, blocking: bool) -> Check:
    message = "cannot be computed: production has no predictions to compare with"
    return Check(name=name, passed=False, message=message, blocking=blocking)


def _regression(slice_: Difference) -> float:
    return slice_.production_f1 - slice_.candidate_f1


def _signed(value: float) -> str:
    return f"{value:+.4f}"
