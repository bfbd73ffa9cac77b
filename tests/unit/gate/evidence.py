"""Evidence of two made-up models on a made-up test split."""

from __future__ import annotations

import numpy as np

from gate.behaviour import BehaviourReport
from gate.comparison import compare
from gate.evaluation import SCORING_VERSION, Score, ScoreKey, Speed, evaluate
from gate.policy import Evidence, scored_fact
from gate.rule import NOT_ROLLED_BACK, Check
from serve_app.inference.metrics import F1Definition

NAMES = ["negative", "positive"]
POSITIVE = F1Definition("binary", "positive")


def probabilities_of(right: np.ndarray, labels: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    """Probabilities [texts, 2] of a model that is right where ``right`` says so, always equally sure."""
    predicted = np.where(right, labels, 1 - labels)
    return np.where(np.arange(2)[None] == predicted[:, None], confidence, 1 - confidence).astype(np.float32)


def score_of(labels: np.ndarray, probabilities: np.ndarray, weights: str = "a", **slices: np.ndarray) -> Score:
    """The evaluation record of ``probabilities``."""
    key = ScoreKey(test_digest="t", weights_digest=weights, scoring_version=SCORING_VERSION, precision="fp32",
                   device_type="cpu", f1_definition=POSITIVE.key)  # fmt: skip
    return evaluate(
        labels, probabilities, label_names=NAMES, definition=POSITIVE, slices=slices, key=key, temperature=1.0,
        texts_per_second=100.0,
    )  # fmt: skip


def evidence(
    candidate: float = 0.92, production: float | None = 0.90, texts: int = 1000, latency_ms: float = 10.0, seed: int = 0
) -> Evidence:
    """Of a candidate and a production model with these accuracies; half of the texts are in the slice ``half``."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, texts)
    hard = rng.random(texts)  # the same texts are hard for both, as they are for real models
    half = np.arange(texts) < texts // 2
    new = probabilities_of(hard + rng.normal(0, 0.02, texts) < candidate, labels)
    score = score_of(labels, new, half=half)
    speed = Speed(latency_ms=latency_ms, latency_p95_ms=2 * latency_ms, texts=32, bytes=1000, parameters=100)
    facts = [
        scored_fact("candidate_score", score),
        Check(name=NOT_ROLLED_BACK, passed=True, message="these weights are not registered yet"),
    ]
    behaviour = BehaviourReport.of([])
    if production is None:
        return Evidence(
            production_exists=False, candidate=score, candidate_speed=speed, behaviour=behaviour, facts=facts
        )
    old = probabilities_of(hard + rng.normal(0, 0.02, texts) < production, labels)
    before = score_of(labels, old, "b", half=half)
    ids = [f"id-{row}" for row in range(texts)]
    return Evidence(
        production_exists=True,
        candidate=score,
        production=before,
        comparison=compare(ids, labels, old, new, label_names=NAMES, definition=POSITIVE, slices={"half": half}),
        candidate_speed=speed,
        production_speed=speed.model_copy(update={"latency_ms": 10.0}),
        behaviour=behaviour,
        facts=[*facts, scored_fact("production_score", before)],
    )
