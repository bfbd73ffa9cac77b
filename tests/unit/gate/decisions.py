"""Decisions to show: made by the gate's own functions from synthetic predictions, one of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.schema import GateConfig
from gate.behaviour import BehaviourReport, Failure, SuiteReport, TestReport
from gate.comparison import compare
from gate.decision import Decision
from gate.evaluation import SCORING_VERSION, Score, ScoreKey, Speed, evaluate
from gate.policy import Evidence, judge_evidence, scored_fact
from gate.rule import NOT_ROLLED_BACK, Check
from serve_app.inference.metrics import F1Definition

LABELS = ("negative", "positive")
RUN, SEARCH, RECORD = "1fea0da99a2a4c27a139d38ef192ffa6", "3579b2ae06e84c31b5c701969c6f7974", "9e" * 16


def _probabilities(truth: np.ndarray, classes: int, seed: int, skill: float) -> np.ndarray:
    """Softmax of logits [texts, classes] that stand ``skill`` higher at the true class than elsewhere. Most of their
    noise is the texts' own, so that two models mostly agree."""
    noise = [np.random.default_rng(each).normal(size=(len(truth), classes)) for each in (seed, 0)]
    logits = 0.45 * noise[0] + 0.9 * noise[1]
    logits[np.arange(len(truth)), truth] += skill
    weights = np.exp(1.4 * logits)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _score(
    truth: np.ndarray, found: np.ndarray, labels: Sequence[str], slices: dict[str, np.ndarray], who: str
) -> Score:
    definition = F1Definition("binary", labels[-1]) if len(labels) == 2 else F1Definition("macro")
    key = ScoreKey(
        test_digest="05e581dd" * 8, weights_digest=who * 32, scoring_version=SCORING_VERSION, precision="fp32",
        device_type="cpu", f1_definition=definition.key,
    )  # fmt: skip
    return evaluate(truth, found, label_names=list(labels), definition=definition, slices=slices, key=key,
                    temperature=1.21, texts_per_second=412.0)  # fmt: skip


def behaviour(text: str = "The soup was not great.") -> BehaviourReport:
    """Three capabilities, one of which fails now and then."""
    failure = Failure(text=text, expected="negative", found="positive 0.874")
    typo = Failure(text="The ending was brilliant.", changed="The ednign was brilliant.",
                   expected="positive 0.912 as before", found="negative 0.532")  # fmt: skip
    tests = [
        TestReport(capability="vocabulary", type="MFT", description="one plain judgement", cases=48, failures=0,
                   examples=[]),
        TestReport(capability="negation", type="MFT", description="something good denied is a complaint", cases=30,
                   failures=11, examples=[failure]),
        TestReport(capability="typos", type="INV", description="two letters swapped", cases=40, failures=3,
                   examples=[typo]),
    ]  # fmt: skip
    why = "it is about sport, and the model has negative, positive"
    return BehaviourReport.of(
        [
            SuiteReport(name="sentiment", digest="1fc8636e" * 8, tests=tests),
            SuiteReport(name="topics", digest="ab" * 32, tests=[], not_applicable=why),
        ]
    )


def evidence(
    *,
    texts: int = 1000,
    labels: Sequence[str] = LABELS,
    skill: float = 2.2,
    production_skill: float | None = 2.0,
    slices: Sequence[str] = ("length: 3 to 9 words", "length: 10 to 16 words", "length: 17 to 24 words",
                             "length: 25 to 51 words", "negation: with", "negation: without"),
    report: BehaviourReport | None = None,
) -> Evidence:  # fmt: skip
    """Evidence about ``texts`` synthetic texts; ``production_skill`` None: there is no production model."""
    draw = np.random.default_rng(3)
    truth = draw.integers(0, len(labels), texts)
    members = {name: draw.random(texts) < 0.3 for name in slices}
    ids = [f"{number:032x}" for number in draw.integers(0, 2**60, texts)]
    new = _probabilities(truth, len(labels), 5, skill)
    old = None if production_skill is None else _probabilities(truth, len(labels), 7, production_skill)
    candidate = _score(truth, new, labels, members, "a1")
    production = None if old is None else _score(truth, old, labels, members, "b2")
    looked_up = [
        scored_fact("candidate_score", candidate),
        *([scored_fact("production_score", production)] if production else []),
        Check(name=NOT_ROLLED_BACK, passed=True, message="these weights are not registered yet"),
    ]
    speed = Speed(latency_ms=6.41, latency_p95_ms=11.9, texts=32, bytes=91_412_000, parameters=22_713_602)
    definition = F1Definition.from_key(candidate.key.f1_definition)
    return Evidence(
        production_exists=old is not None,
        candidate=candidate,
        production=production,
        comparison=None if old is None else compare(ids, truth, old, new, label_names=labels, definition=definition,
                                                    slices=members),
        candidate_speed=speed,
        production_speed=None if old is None else speed.model_copy(update={"latency_ms": 6.02, "latency_p95_ms": 12.4}),
        behaviour=behaviour() if report is None else report,
        facts=looked_up,
    )  # fmt: skip


def decided(found: Evidence, *, force: bool = False, policy: GateConfig | None = None, **values: Any) -> Decision:
    """What the gate makes of the evidence, about version 4 with version 3 in production if there is one."""
    policy = policy or GateConfig()
    conclusion = judge_evidence(found, policy, force=force)
    outcome = "promoted" if conclusion.outcome == "pass" else conclusion.outcome
    before, changed = "3" if found.production_exists else None, outcome != "blocked"
    given = {
        "decision": outcome,
        "reason": conclusion.reason,
        "action": "promote",
        "model_name": "trialgate-classifier",
        "run_id": RUN,
        "parent_run_id": SEARCH,
        "f1": found.candidate.f1 if found.candidate else None,
        "baseline_f1": found.production.f1 if found.production else None,
        "minimum_f1": policy.minimum_f1,
        "model_version": "4" if changed else None,
        "baseline_version": before,
        "production_version": "4" if changed else before,
        "changed": changed,
        "test_digest": "05e581dd" * 8,
        "config_digest": "8d0d303e" * 8,
        "policy": policy,
        "evidence": found,
        "checks": conclusion.checks,
        "force": force,
        "decision_id": RECORD,
        "decided_at": "2026-11-25T04:05:53.123456+00:00",
        "decided_by": "ada@gatehouse",
    }
    return Decision.model_validate({**given, **values})


def rolled_back(**values: Any) -> Decision:
    """Production went back from version 4 to 3; there is no evidence."""
    given = {
        "decision": "rolled_back", "reason": "from version 4 to version 3: too many complaints", "action": "rollback",
        "model_name": "trialgate-classifier", "run_id": RUN, "f1": 0.88, "baseline_f1": 0.91, "model_version": "3",
        "baseline_version": "4", "production_version": "3", "changed": True, "forced_reason": "too many complaints",
        "decision_id": RECORD, "decided_at": "2026-11-25T05:05:53.123456+00:00", "decided_by": "ada@gatehouse",
    }  # fmt: skip
    return Decision.model_validate({**given, **values})
