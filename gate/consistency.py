"""What in a recorded decision contradicts the rest: every number that follows from others is computed again. Pure.

The verdict and its checks are not looked at here: ``gate.policy`` computes them from the same evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from configs.gate import SHIPPED_SUITE
from gate.behaviour import EXAMPLES as FAILURES_SHOWN
from gate.behaviour import BehaviourReport
from gate.comparison import EXAMPLES, Comparison, confusion_of, recomputed
from gate.decision import Decision
from gate.evaluation import Score, from_confusion, slice_score
from gate.policy import Evidence, scored_fact
from gate.rule import NOT_ROLLED_BACK, Check
from gate.statistics import BINS, expected_calibration_error
from serve_app.inference.metrics import F1Definition

# The facts that gate.judgement finds on the way, and whether one that failed can be overridden.
_FACTS: Final = {
    "candidate_score": False,
    "production_score": True,
    "production_version": True,
    "behaviour": False,
    NOT_ROLLED_BACK: True,
}
_ROUNDING: Final = 1e-6  # of probabilities, which are float32


def contradictions(decision: Decision, evidence: Evidence) -> Iterator[str]:
    """What does not follow, in words: of the evidence in itself, and of what the decision takes from it."""
    yield from _missing_parts(evidence)
    yield from _facts(evidence)
    sides = (
        ("candidate", evidence.candidate, decision.f1),
        ("production", evidence.production, decision.baseline_f1),
    )
    for side, score, f1 in sides:
        yield from unlike(f"F1 of the {side}", f1, score.f1 if score else None)
        if score is not None:
            yield from _score(side, score)
            yield from unlike(f"test split of the {side}", decision.test_digest, score.key.test_digest)
    if evidence.candidate is not None and evidence.production is not None:
        yield from _two_sides(evidence.candidate, evidence.production)
        if evidence.comparison is not None:
            yield from _comparison(evidence.comparison, evidence.candidate, evidence.production)
    if decision.policy is not None:
        yield from unlike("minimum F1", decision.minimum_f1, decision.policy.minimum_f1)
        if evidence.behaviour is not None:
            yield from _behaviour(evidence.behaviour, decision.policy.behaviour_suites)
    yield from unlike("a production version", decision.baseline_version is not None, evidence.production_exists)
    if evidence.production_version is not None:
        yield from unlike("production version before", decision.baseline_version, evidence.production_version)


def unlike(what: str, recorded: Any, found: Any) -> list[str]:
    """One sentence if the two differ, else none."""
    return [] if recorded == found else [f"{what}: recorded {_shown(recorded)}, computed {_shown(found)}"]


def _missing_parts(evidence: Evidence) -> Iterator[str]:
    """Every part is there if and only if what it is made of is."""
    candidate, production = evidence.candidate is not None, evidence.production is not None
    behaves = all(fact.name != "behaviour" for fact in evidence.facts)
    for name, there, expected in (
        ("score of production", production, production and candidate and evidence.production_exists),
        ("comparison", evidence.comparison is not None, candidate and production),
        ("speed of the candidate", evidence.candidate_speed is not None, candidate),
        ("speed of production", evidence.production_speed is not None, candidate and production),
        ("behavioural tests", evidence.behaviour is not None, candidate and behaves),
    ):
        if there != expected:
            yield f"{name}: {'there, and nothing it could be of' if there else 'missing'}"


def _facts(evidence: Evidence) -> Iterator[str]:
    given = [fact.name for fact in evidence.facts]
    expected = {"candidate_score", NOT_ROLLED_BACK}
    if evidence.candidate is not None and evidence.production_exists:
        expected.add("production_score")
    for name in sorted(expected - set(given)):
        yield f"fact {name}: missing"
    allowed = expected | {"behaviour"} | (set() if evidence.production_exists else {"production_version"})
    for name in sorted(set(given)):
        if name not in allowed:
            yield f"fact {name}: does not belong to this evidence"
        elif given.count(name) > 1:
            yield f"fact {name}: there {given.count(name)} times"
    scores = {"candidate_score": evidence.candidate, "production_score": evidence.production}
    for fact in evidence.facts:
        score = scores.get(fact.name)
        if score is not None:
            yield from unlike(f"fact {fact.name}", fact, scored_fact(fact.name, score))
        elif fact.name in _FACTS:
            passed = fact.passed and fact.name == NOT_ROLLED_BACK
            can_be = Check(name=fact.name, passed=passed, message=fact.message, overridable=passed or _FACTS[fact.name])
            yield from unlike(f"fact {fact.name}", fact, can_be)


def _score(side: str, score: Score) -> Iterator[str]:
    definition = F1Definition.from_key(score.key.f1_definition)
    again = from_confusion(np.asarray(score.confusion), score.labels, definition)
    for name, found in again.pop("intervals").items():
        yield from unlike(f"{name} interval of the {side}", score.intervals[name], found)
    for label, found in again.pop("per_class").items():
        yield from unlike(f"class {label} of the {side}", score.per_class[label], found)
    for field, found in again.items():
        yield from unlike(f"{field} of the {side} from its confusion matrix", getattr(score, field), found)
    yield from unlike(f"log loss of the {side}", score.log_loss, score.intervals["log_loss"].value)
    ece = expected_calibration_error(score.calibration)
    yield from unlike(f"calibration error of the {side} from its bins", score.ece, ece)
    yield from _bins(side, score)


def _bins(side: str, score: Score) -> Iterator[str]:
    """The bins must be those of the diagram, and hold every text and every one that is right."""
    rights = [round(each.accuracy * each.texts) for each in score.calibration]
    yield from unlike(f"texts in the bins of the {side}", sum(each.texts for each in score.calibration), score.texts)
    yield from unlike(f"texts that are right in the bins of the {side}", sum(rights), np.trace(score.confusion))
    places = [round(each.low * BINS) for each in score.calibration]
    if places != sorted(set(places)) or not set(places) <= set(range(BINS)):
        yield f"bins of the {side}: not {BINS} at most, one after the other"
    for each, place, right in zip(score.calibration, places, rights, strict=True):
        ends = (each.low, each.high) == (place / BINS, (place + 1) / BINS)
        inside = each.low - _ROUNDING <= each.confidence <= each.high + _ROUNDING
        if not ends or not inside or each.accuracy != right / each.texts:
            yield f"bin of the {side} from {each.low:.3f}: contradicts itself: {_shown(each)}"


def _two_sides(candidate: Score, production: Score) -> Iterator[str]:
    """Both must be scored alike on the same texts."""
    same = {"weights_digest": candidate.key.weights_digest}
    yield from unlike("what both scores depend on", production.key.model_copy(update=same), candidate.key)
    yield from unlike("labels of production", production.labels, candidate.labels)
    names = [[each.name for each in score.slices] for score in (production, candidate)]
    yield from unlike("slices of production", *names)


def _comparison(comparison: Comparison, candidate: Score, production: Score) -> Iterator[str]:
    again = recomputed(comparison)
    for field in Comparison.model_fields:
        yield from unlike(f"comparison, {field}", getattr(comparison, field), getattr(again, field))
    yield from unlike("comparison, labels of the scores", comparison.labels, candidate.labels)
    yield from unlike("comparison, F1 of the scores", comparison.f1_definition, candidate.key.f1_definition)
    whole = {cell[:3]: cell[3] for cell in comparison.whole.cells}
    for part in comparison.slices:
        if any(texts > whole.get((true, before, after), 0) for true, before, after, texts in part.cells):
            yield f"comparison, slice {part.name}: has texts that the whole has not"
    classes = len(comparison.labels)
    averaged = F1Definition.from_key(comparison.f1_definition).averaged(comparison.labels)
    for side, score in (("candidate", candidate), ("production", production)):
        found = confusion_of(comparison.whole.cells, classes, candidate=side == "candidate")
        yield from unlike(f"comparison, confusion matrix of the {side}", score.confusion, found.tolist())
        slices = [
            slice_score(part.name, confusion_of(part.cells, classes, candidate=side == "candidate"), averaged)
            for part in comparison.slices
        ]
        if len(slices) != len(score.slices):
            yield from unlike(f"number of slices of the {side}", len(score.slices), len(slices))
            continue
        for recorded, computed in zip(score.slices, slices, strict=True):
            yield from unlike(f"slice {recorded.name} of the {side}", recorded, computed)

    for name, examples, texts in (
        ("gained", comparison.gained_examples, comparison.gained),
        ("lost", comparison.lost_examples, comparison.lost),
    ):
        yield from unlike(f"comparison, examples of texts {name}", len(examples), min(texts, EXAMPLES))


def _behaviour(report: BehaviourReport, asked_for: Sequence[str]) -> Iterator[str]:
    """The suites must be those of the policy, as far as their addresses say; every test shows some of its failures."""
    yield from unlike("behavioural suites of the policy", len(asked_for), len(report.suites))
    for address, suite in zip(asked_for, report.suites, strict=False):
        if re.fullmatch(SHIPPED_SUITE, address):
            yield from unlike("behavioural suite of the policy", address, suite.name)
        for test in suite.tests:
            what = f"examples of failures in {suite.name}, {test.capability}"
            yield from unlike(what, len(test.examples), min(test.failures, FAILURES_SHOWN))


def _shown(value: Any) -> str:
    text = value.model_dump_json() if isinstance(value, BaseModel) else str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
