"""Intervals, tests and calibration against what is known, or computed the long way."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import f1_score as sklearn_f1

from gate.statistics import (
    F1OfCells,
    expected_calibration_error,
    interval,
    mcnemar,
    mean_interval,
    reliability,
)


@given(st.integers(2, 6), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_f1_of_cells_is_the_f1_of_the_texts(classes: int, texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, classes, texts), rng.integers(0, classes, texts)
    kinds, counts = np.unique(np.stack([true, predicted], axis=1), axis=0, return_counts=True)
    for averaged in (range(classes), [0], [0, classes - 1]):
        found = F1OfCells(kinds[:, 0], kinds[:, 1], classes, averaged)(counts[None])[0]
        each = sklearn_f1(true, predicted, labels=range(classes), average=None, zero_division=0.0)
        assert found == pytest.approx(each[averaged].mean())


def test_interval_is_that_of_resampled_texts() -> None:
    """The bootstrap by counts against the bootstrap by texts, which it replaces."""
    rng = np.random.default_rng(5)
    true = rng.integers(0, 2, 400)
    predicted = np.where(rng.random(400) < 0.85, true, 1 - true)
    counts = np.bincount(true * 2 + predicted, minlength=4)
    found = interval(counts, F1OfCells.of_confusion(2, [1]), replicates=4000)
    rows = rng.integers(0, 400, (4000, 400))
    values = [sklearn_f1(true[row], predicted[row]) for row in rows[:1500]]
    low, high = np.percentile(values, [2.5, 97.5])
    assert found.value == pytest.approx(sklearn_f1(true, predicted))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    truth = np.array([0.45, 0.05, 0.08, 0.42])
    f1 = F1OfCells.of_confusion(2, [1])
    expected = f1(truth[None])[0]
    inside = 0
    for _ in range(300):
        found = interval(rng.multinomial(1000, truth), f1, replicates=400)
        inside += found.low <= expected <= found.high
    assert 0.92 <= inside / 300 <= 0.98


def test_same_counts_same_interval_in_every_version_of_numpy() -> None:
    found = interval(np.array([40, 7, 5, 48]), F1OfCells.of_confusion(2, [1]))
    text = f"{found.value!r} {found.low!r} {found.high!r}"
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST, text


DIGEST = "824b81d2e4127c167f0840feadf1c4026a31f7c6fb8dcd6decef33696de27e5f"


def test_interval_of_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one text"):
        interval(np.zeros(4, dtype=np.int64), F1OfCells.of_confusion(2, [1]))


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).exponential(size=4000)
    found = mean_interval(values)
    assert found.low < 1.0 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.1)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    expected = min(1.0, 2 * binom.cdf(k, n, 0.5)) if n else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_calibration_of_models_that_are_and_are_not() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.5, 1.0, 40_000)
    labels = (rng.random(40_000) > confidence).astype(int)  # class 0 with its own probability
    honest = reliability(labels, np.stack([confidence, 1 - confidence], axis=1))
    assert expected_calibration_error(honest) < 0.02
    sure = np.where(confidence > 0.5, 0.999, 0.001)
    boastful = reliability(labels, np.stack([sure, 1 - sure], axis=1))
    assert expected_calibration_error(boastful) == pytest.approx(0.25, abs=0.02)  # right in 3 of 4
    for bins in (honest, boastful):
        assert sum(each.texts for each in bins) == 40_000
        assert all(each.low < each.confidence <= each.high for each in bins)


def test_confidence_of_one_belongs_to_the_last_bin() -> None:
    (only,) = reliability(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (only.low, only.high, only.texts, only.accuracy) == (14 / 15, 1.0, 2, 0.5)
    assert expected_calibration_error([]) == 0.0
