"""The fitted temperature: never worse, the same answers, and what it does where none is best."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Settings
from ray_jobs.calibration import HIGHEST, LOWEST, fit_temperature
from ray_jobs.data.prepare import prepare
from ray_jobs.tokens import tokenise
from ray_jobs.training import Trainer
from ray_jobs.trial import build_model, save_model
from serve_app.inference.engine import Engine


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())


def drawn(seed: int, sureness: float, texts: int = 400, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about their own probabilities at temperature 1 / ``sureness``, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.0, size=(texts, classes))
    noise = rng.gumbel(size=logits.shape)
    return logits * sureness, (logits + noise).argmax(axis=1)


seeds = st.integers(0, 10_000)


@given(seed=seeds, sureness=st.floats(0.01, 100.0), texts=st.integers(1, 60), classes=st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_never_worse_and_the_same_answers(seed: int, sureness: float, texts: int, classes: int) -> None:
    logits, labels = drawn(seed, sureness, texts, classes)
    temperature = fit_temperature(logits, labels)
    assert LOWEST <= temperature <= HIGHEST
    assert loss(logits, labels, temperature) <= loss(logits, labels) + 1e-12
    assert (logits / temperature).argmax(axis=1).tolist() == logits.argmax(axis=1).tolist()


@given(seed=seeds, factor=st.floats(0.3, 5.0))
@settings(max_examples=30, deadline=None)
def test_logits_that_are_k_times_as_large_have_k_times_the_temperature(seed: int, factor: float) -> None:
    logits, labels = drawn(seed, 1.0)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-3)


@pytest.mark.parametrize("sureness", [0.2, 1.0, 4.0])
def test_it_finds_how_much_too_sure_a_model_is(sureness: float) -> None:
    logits, labels = drawn(0, sureness, texts=20_000)
    assert fit_temperature(logits, labels) == pytest.approx(sureness, rel=0.03)
    assert fit_temperature(logits.astype(np.float32), labels.astype(np.int32)) == pytest.approx(sureness, rel=0.03)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.empty((0, 2)), []),
        ([[0.1, 0.2], [3.0, -3.0]], [1, 0]),  # every text right
        ([[-1.0, 5.0], [0.0, 2.0]], [1, 1]),  # one class, all right
        ([[2.0, 2.0], [-1.0, -1.0]], [1, 0]),  # says nothing
        ([[np.nan, 0.0], [1.0, 2.0]], [0, 0]),
        ([[np.inf, 0.0], [1.0, 2.0]], [1, 0]),
    ],
)
def test_where_no_temperature_is_best_nothing_is_changed(logits: list[list[float]], labels: list[int]) -> None:
    assert fit_temperature(np.asarray(logits), np.asarray(labels, dtype=np.int64)) == 1.0


def test_worse_than_chance_is_as_unsure_as_can_be_and_huge_logits_stay_finite() -> None:
    assert fit_temperature(np.array([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0]]), np.array([1, 1, 0])) == pytest.approx(
        HIGHEST, rel=1e-3
    )
    assert LOWEST <= fit_temperature(np.array([[1e30, -1e30], [1e30, -1e30]]), np.array([0, 1])) <= HIGHEST


def test_a_saved_model_is_calibrated(tmp_path: Path) -> None:
    """A model that has learnt its training texts by heart is too sure; the one that is served is less so."""
    chosen = Settings.model_validate(
        {
            "data": {"source": "builtin", "generator": {"texts": 800, "test_texts": 600}, "validation_fraction": 0.5},
            "model": {"family": "avgnet", "avgnet": {"width": 32, "vocabulary_size": 1000}, "max_length": 64},
            "training": {"epochs": 12, "batch_size": 32, "learning_rate": 5e-2, "precision": "fp32"},
        }
    )
    dataset = prepare(chosen.data)
    data = tokenise(chosen, dataset)
    model = build_model(chosen, data)
    trainer = Trainer(model, data.train.cut(64), data.validation.cut(64), chosen.training,
                      label_names=data.label_names, f1=dataset.f1)  # fmt: skip
    trainer.run()
    save_model(tmp_path / "model", trainer, model, data, chosen)
    engine = Engine.load(tmp_path / "model")
    assert engine.info.temperature == trainer.reports[-1].temperature > 1.0
    calibrated = engine.predict(dataset.test.texts)
    engine.info = dataclasses.replace(engine.info, temperature=1.0)
    raw = engine.predict(dataset.test.texts)
    assert (calibrated.argmax(axis=1) == raw.argmax(axis=1)).all()
    labels = dataset.test.labels
    assert loss(np.log(calibrated), labels) < loss(np.log(raw), labels)
    assert abs(confidence_gap(calibrated, labels)) < 0.5 * confidence_gap(raw, labels)


def confidence_gap(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By how much the model thinks itself right more often than it is."""
    return float(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == labels).mean())
