"""Computes a recorded decision again, from what it says that it rests on: was it right, and is it still whole?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from gate.comparison import Comparison, confusion_of, recomputed
from gate.decision import Decision, GateUsageError
from gate.evaluation import Score, f1_interval_of
from gate.policy import Evidence, judge_evidence
from gate.statistics import expected_calibration_error
from serve_app.inference.metrics import F1Definition, f1_from_confusion


class Replay(BaseModel):
    """What came of computing a decision again. ``differences``: what is not as recorded, in words; none: it agrees."""

    model_config = ConfigDict(extra="forbid")

    decision_id: str | None
    recorded: str
    recomputed: str
    agrees: bool
    differences: list[str]


def read_decision(address: str) -> Decision:
    """The decision document at a path or URL. Raises GateUsageError if it is none."""
    try:
        with fsspec.open(address, "rb") as file:
            return Decision.model_validate_json(file.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise GateUsageError(f"{address} is not a decision of the gate: {where or 'the document'}: {first['msg']}; "
                             "expected the decision.json of a decision's run") from None  # fmt: skip
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ImportError, ValueError) as error:
        raise GateUsageError(f"{address} cannot be read: {error}") from None


def replay(decision: Decision) -> Replay:
    """Computes every number that follows from others, then the verdict, and compares both with what is recorded."""
    differences: list[str] = []
    verdict: str = decision.decision
    if decision.evidence is not None and decision.policy is not None:
        differences += _changed_numbers(decision, decision.evidence)
        conclusion = judge_evidence(decision.evidence, decision.policy, force=decision.force)
        passed = "would_promote" if decision.action == "check" else "promoted"
        verdict = passed if conclusion.outcome == "pass" else conclusion.outcome
        differences += _unlike("decision", decision.decision, verdict)
        if not decision.reason.endswith(conclusion.reason):  # what was done may stand before it
            differences += _unlike("reason", decision.reason, conclusion.reason)
        recorded = {check.name: check for check in decision.checks}
        for check in conclusion.checks:
            differences += _unlike(f"check {check.name}", recorded.pop(check.name, None), check)
        differences += [f"check {name}: recorded, and does not follow from the evidence" for name in recorded]
    elif decision.action in ("check", "promote"):
        differences.append("the document has no evidence to compute its verdict from")
    return Replay(
        decision_id=decision.decision_id,
        recorded=decision.decision,
        recomputed=verdict,
        agrees=not differences,
        differences=differences,
    )


def _changed_numbers(decision: Decision, evidence: Evidence) -> Iterator[str]:
    for side, score, f1 in (
        ("candidate", evidence.candidate, decision.f1),
        ("production", evidence.production, decision.baseline_f1),
    ):
        yield from _unlike(f"F1 of the {side}", f1, score.f1 if score else None)
        if score is not None:
            definition = F1Definition.from_key(score.key.f1_definition)
            found = f1_from_confusion(np.asarray(score.confusion), definition, score.labels)
            yield from _unlike(f"F1 of the {side} from its confusion matrix", score.f1, found)
            again = f1_interval_of(np.asarray(score.confusion), definition.averaged(score.labels))
            yield from _unlike(f"F1 interval of the {side}", score.intervals["f1"], again)
            ece = expected_calibration_error(score.calibration)
            yield from _unlike(f"calibration error of the {side} from its bins", score.ece, ece)
            yield from _unlike(f"test split of the {side}", decision.test_digest, score.key.test_digest)
    if evidence.comparison is not None:
        yield from _changed_comparison(evidence, evidence.comparison)


def _changed_comparison(evidence: Evidence, comparison: Comparison) -> Iterator[str]:
    again = recomputed(comparison)
    for field in Comparison.model_fields:
        yield from _unlike(f"comparison, {field}", getattr(comparison, field), getattr(again, field))
    sides: list[tuple[str, Score | None]] = [("candidate", evidence.candidate), ("production", evidence.production)]
    for side, score in sides:
        if score is not None:
            found = confusion_of(comparison.whole.cells, len(score.labels), candidate=side == "candidate").tolist()
            yield from _unlike(f"comparison, confusion matrix of the {side}", score.confusion, found)


def _unlike(what: str, recorded: Any, found: Any) -> list[str]:
    return [] if recorded == found else [f"{what}: recorded {_shown(recorded)}, computed {_shown(found)}"]


def _shown(value: Any) -> str:
    text = value.model_dump_json() if isinstance(value, BaseModel) else str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
