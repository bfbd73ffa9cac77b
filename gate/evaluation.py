"""The evaluation record: what one model does on one test split, with how sure that is. No files, no MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gate.slices import averaged_in_slice
from gate.statistics import (
    Bin,
    Count,
    F1OfCells,
    Interval,
    Positive,
    Share,
    expected_calibration_error,
    interval,
    mean_interval,
    reliability,
)
from serve_app.inference.metrics import (
    F1Definition,
    classification_scores,
    confusion_matrix,
    scores_from_confusion,
)

# Raise it whenever a change in evaluation, scoring or the engine can change a score: stored ones are then computed
# again, and decisions made before can only be replayed by the release that made them.
SCORING_VERSION = "8"


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

    precision: Share
    recall: Share
    f1: Share
    support: Count
    f1_interval: Interval


class SliceScore(BaseModel):
    """Scores of some of the texts. ``f1``: over the classes that occur there (``gate.slices.averaged_in_slice``)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    texts: Positive
    f1: Interval
    accuracy: Share


class Score(BaseModel):
    """One model on one test split. ``confusion``: rows are true classes; ``log_loss``: nats per text.

    ``intervals``: of ``f1``, ``accuracy`` and ``log_loss``. ``calibration``: the reliability diagram, and ``ece`` its
    expected calibration error. ``temperature``: what training fitted on its validation texts (1.0: nothing).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: ScoreKey
    labels: list[str]
    f1: Share
    accuracy: Share
    log_loss: float
    intervals: dict[str, Interval]
    per_class: dict[str, ClassScore]
    confusion: list[list[Count]]
    slices: list[SliceScore]
    calibration: list[Bin] = Field(min_length=1)
    ece: float
    temperature: float
    texts: Positive
    texts_per_second: float

    @model_validator(mode="after")
    def _can_be_computed(self) -> Score:
        F1Definition.from_key(self.key.f1_definition).averaged(self.labels)
        classes = len(self.labels)
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise ValueError(f"expected a confusion matrix of {classes} rows and columns, one for each of the labels")
        if not any(map(any, self.confusion)):
            raise ValueError("the confusion matrix has no text")
        if list(self.per_class) != self.labels:
            raise ValueError(f"per_class is about {list(self.per_class)}, expected {self.labels}")
        if self.intervals.keys() != {"f1", "accuracy", "log_loss"}:
            raise ValueError(f"intervals are of {sorted(self.intervals)}, expected f1, accuracy and log_loss")
        return self

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

    latency_ms: float = Field(gt=0.0)
    latency_p95_ms: float = Field(gt=0.0)
    texts: Positive
    rounds: Positive = 5  # what every decision had before this was recorded
    bytes: Positive
    parameters: Positive


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
    log_loss = classification_scores(labels, probabilities, label_names, definition)["log_loss"]
    predicted = probabilities.argmax(axis=1)
    found = from_confusion(confusion_matrix(labels, predicted, len(label_names)), label_names, definition)
    of_true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    found["intervals"]["log_loss"] = mean_interval(-np.log(np.clip(of_true_class, 1e-12, 1.0)))
    averaged = definition.averaged(label_names)
    bins = reliability(labels, probabilities)
    return Score(
        key=key,
        labels=label_names,
        log_loss=log_loss,
        slices=[
            slice_score(name, confusion_matrix(labels[members], predicted[members], len(label_names)), averaged)
            for name, members in slices.items()
        ],
        calibration=bins,
        ece=expected_calibration_error(bins),
        temperature=temperature,
        texts_per_second=texts_per_second,
        **found,
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


def from_confusion(confusion: np.ndarray, label_names: list[str], definition: F1Definition) -> dict[str, Any]:
    """The fields of a Score that follow from its confusion matrix, int [classes, classes], alone.

    ``intervals`` has those of F1 and accuracy.
    """
    scores = scores_from_confusion(confusion, label_names, definition)
    per_class = {
        name: ClassScore(**values, f1_interval=f1_interval_of(confusion, [place]))
        for place, (name, values) in enumerate(scores["per_class"].items())
    }
    intervals = {
        "f1": f1_interval_of(confusion, definition.averaged(label_names)),
        "accuracy": _accuracy_interval(confusion),
    }
    return {**scores, "per_class": per_class, "intervals": intervals, "texts": int(confusion.sum())}


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
