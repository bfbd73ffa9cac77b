"""A recorded decision is computed again, and whatever was changed in it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.gate import GateConfig
from gate.__main__ import main
from gate.decision import Decision, GateUsageError
from gate.policy import judge_evidence
from gate.replay import read_decision, replay
from tests.unit.gate.evidence import evidence


def _decision(candidate: float = 0.92, *, force: bool = False, **policy: Any) -> Decision:
    found, config = evidence(candidate), GateConfig(**policy)
    conclusion = judge_evidence(found, config, force=force)
    assert found.candidate is not None
    assert found.production is not None
    return Decision(
        decision="promoted" if conclusion.outcome == "pass" else conclusion.outcome, reason=conclusion.reason,
        action="promote", model_name="m", f1=found.candidate.f1, baseline_f1=found.production.f1, test_digest="t",
        policy=config, evidence=found, checks=conclusion.checks, force=force,
    )  # fmt: skip


@pytest.mark.parametrize(
    "decision",
    [_decision(), _decision(0.8), _decision(0.8, force=True), _decision(0.901, require_significant=True)],
    ids=lambda decision: decision.decision,
)
def test_what_was_recorded_agrees(decision: Decision, tmp_path: Path) -> None:
    file = tmp_path / "decision.json"
    file.write_text(decision.model_dump_json())
    found = replay(read_decision(str(file)))
    assert (found.agrees, found.differences) == (True, [])
    assert found.recorded == found.recomputed == decision.decision
    assert main(["replay", str(file)]) == 0


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for parent in parents:
            document = document[parent]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("decision", "promoted"), "decision: recorded promoted, computed blocked"),
        (_set("f1", 0.99), "F1 of the candidate"),
        (_set("evidence.candidate.f1", 0.99), "F1 of the candidate from its confusion matrix"),
        (_set("evidence.production.confusion.1.1", 1), "F1 of the production from its confusion matrix"),
        (_set("evidence.candidate.intervals.f1.low", 0.5), "F1 interval of the candidate"),
        (_set("evidence.candidate.ece", 0.0), "calibration error of the candidate"),
        (_set("evidence.comparison.gained", 5000), "comparison, gained"),
        (_set("evidence.comparison.whole.difference.low", 0.01), "comparison, whole"),
        (_set("evidence.comparison.whole.cells.0.3", 1), "confusion matrix of the candidate"),
        (_set("policy.minimum_f1", 0.1), None),  # plays no part while there is a production model
        (_set("policy.min_class_f1", 0.99), "check class_f1"),
        (_set("test_digest", "another"), "test split of the candidate"),
        (_set("checks.0.passed", False), "check candidate_score"),
        (lambda document: document["checks"].append(document["checks"][0] | {"name": "more"}), "check more"),
        (_set("evidence", None), "no evidence"),
    ],
)
def test_what_was_changed_is_found(
    change: Callable[[Any], None], words: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(_decision(0.8).model_dump_json())
    change(document)
    file = tmp_path / "decision.json"
    file.write_text(json.dumps(document))
    found = replay(read_decision(str(file)))
    if words is None:
        assert found.agrees
        return
    assert not found.agrees
    assert any(words in difference for difference in found.differences), found.differences
    assert main(["replay", str(file)]) == 1
    assert words in capsys.readouterr().out


def test_a_rollback_applies_no_rule(tmp_path: Path) -> None:
    decision = Decision(decision="rolled_back", reason="r", action="rollback", model_name="m")
    assert replay(decision).agrees


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"decision": "maybe"}', "\udcff"])
def test_what_is_no_decision_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decision.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(GateUsageError, match="is not a decision"):
        read_decision(str(file))
    assert main(["replay", str(file)]) == 2
    assert main(["replay", str(tmp_path / "nowhere.json")]) == 2
    assert main(["replay", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
