"""The evaluation record: what one model does on one test split, with how sure that is. No files, no MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from gate.slices import averaged_in_slice
from gate.statistics import (
    Bin,
    F1OfCells,
    Interval,
    expected_calibration_error,
    interval,
    mean_interval,
    reliability,
)
from serve_app.inference.metrics import F1Definition, classification_scores, confusion_matrix


class ScoreKey(BaseModel):
    """Everything that a score depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test_digest: str
    weights_digest: str
    scoring_version: str
    precision: str
    device_type: str
    f1_definition: str

    @property
    def folder(self) -> str:
        """Where a run keeps the score with this key: its artifacts ``score.json`` and ``predictions.parquet``."""
        content = json.dumps(self.model_dump(), sort_keys=True).encode()
        return f"scores/{hashlib.sha256(content).hexdigest()[:32]}"


class ClassScore(BaseModel):
    """Scores of one class, 0 to 1; ``support``: texts that truly are of the class."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    precision: float
    recall: float
    f1: float
    support: int
    f1_interval: Interval


class SliceScore(BaseModel):
    """Scores of some of the texts. ``f1``: over the classes that occur there (``gate.slices.averaged_in_slice``)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    texts: int
    f1: Interval
    accuracy: float


class Score(BaseModel):
    """One model on one test split. ``confusion``: rows are true classes; ``log_loss``: nats per text.

    ``intervals``: of ``f1``, ``accuracy`` and ``log_loss``. ``calibration``: the reliability diagram, and ``ece`` its
    expected calibration error. ``temperature``: what training fitted on its validation texts (1.0: nothing).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: ScoreKey
    labels: list[str]
    f1: float
    accuracy: float
    log_loss: float
    intervals: dict[str, Interval]
    per_class: dict[str, ClassScore]
    confusion: list[list[int]]
    slices: list[SliceScore]
    calibration: list[Bin]
    ece: float
    temperature: float
    texts: int
    texts_per_second: float

    def metrics(self) -> dict[str, float]:
        """The numbers under the names that they have on the candidate's run."""
        values = {
            "test_f1": self.f1,
            "test_accuracy": self.accuracy,
            "test_log_loss": self.log_loss,
            "test_ece": self.ece,
            "test_f1_low": self.intervals["f1"].low,
            "test_f1_high": self.intervals["f1"].high,
            "test_texts": float(self.texts),
            "test_texts_per_second": self.texts_per_second,
        }
        for place, (name, scores) in enumerate(self.per_class.items()):
            # MLflow takes few characters in a metric's name, and class names may be anything.
            safe = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:100].strip() or str(place)
            values[f"test_precision_{safe}"] = scores.precision
            values[f"test_recall_{safe}"] = scores.recall
        return values


class Speed(BaseModel):
    """Latency of one text at a time, milliseconds (median and 95th percentile over ``texts`` of them, each at its best
    of ``rounds``), and the size of the saved model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    latency_ms: float
    latency_p95_ms: float
    texts: int
    rounds: int = 5  # what every decision had before this was recorded
    bytes: int
    parameters: int


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    label_names: list[str],
    definition: F1Definition,
    slices: Mapping[str, np.ndarray],
    key: ScoreKey,
    temperature: float,
    texts_per_second: float,
) -> Score:
    """The record of ``probabilities`` [texts, classes] against class ids ``labels`` [texts].

    ``slices``: name to members, bool [texts]. Raises ValueError for no texts or a probability that is not finite.
    """
    scores = classification_scores(labels, probabilities, label_names, definition)
    confusion = np.asarray(scores["confusion"])
    predicted = probabilities.argmax(axis=1)
    averaged = definition.averaged(label_names)
    of_true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    bins = reliability(labels, probabilities)
    per_class = {
        name: ClassScore(**values, f1_interval=f1_interval_of(confusion, [label_names.index(name)]))
        for name, values in scores.pop("per_class").items()
    }
    return Score(
        key=key,
        labels=label_names,
        intervals={
            "f1": f1_interval_of(confusion, averaged),
            "accuracy": _accuracy_interval(confusion),
            "log_loss": mean_interval(-np.log(np.clip(of_true_class, 1e-12, 1.0))),
        },
        per_class=per_class,
        slices=[
            slice_score(name, confusion_matrix(labels[members], predicted[members], len(label_names)), averaged)
            for name, members in slices.items()
        ],
        calibration=bins,
        ece=expected_calibration_error(bins),
        temperature=temperature,
        texts=len(labels),
        texts_per_second=texts_per_second,
        **scores,
    )


def is_alike(one: object, other: object) -> bool:
    """Whether two dumped records say the same: numbers may differ in the last bits, which no two processors promise to
    share for a logarithm."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


def f1_interval_of(confusion: np.ndarray, averaged: Sequence[int]) -> Interval:
    """The F1 of a confusion matrix [classes, classes] with its interval. ``averaged``: as in ``F1OfCells``."""
    true, predicted = np.nonzero(confusion)  # with many classes most cells are empty
    return interval(confusion[true, predicted], F1OfCells(true, predicted, len(confusion), averaged))


def slice_score(name: str, confusion: np.ndarray, averaged: Sequence[int]) -> SliceScore:
    """The scores of a slice from its confusion matrix. ``averaged``: the classes that are over all texts."""
    return SliceScore(
        name=name,
        texts=int(confusion.sum()),
        f1=f1_interval_of(confusion, averaged_in_slice(averaged, np.flatnonzero(confusion.sum(axis=1)))),
        accuracy=float(np.trace(confusion) / confusion.sum()),
    )


def _accuracy_interval(confusion: np.ndarray) -> Interval:
    right = int(np.trace(confusion))
    counts = np.asarray([right, int(confusion.sum()) - right])
    return interval(counts, lambda drawn: drawn[:, 0] / drawn.sum(axis=1))
