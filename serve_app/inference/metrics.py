"""Classification scores, in numpy, the same code for validation, the gate and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class F1Definition:
    """Which F1 is meant: that of one class, or the unweighted mean over all classes.

    It is stored with every score, and scores of two definitions are never compared.
    """

    average: Literal["binary", "macro"]
    positive_label: str | None = None

    def __post_init__(self) -> None:
        if (self.average == "binary") != (self.positive_label is not None):
            raise ValueError(f"a binary F1 needs its positive label and a macro F1 has none, found {self}")

    @property
    def key(self) -> str:
        """``binary:NAME`` or ``macro``."""
        return f"binary:{self.positive_label}" if self.average == "binary" else "macro"

    def averaged(self, names: Sequence[str]) -> list[int]:
        """The ids of the classes whose F1s are averaged, among the classes ``names``. ValueError if they lack one."""
        if self.positive_label is None:
            return list(range(len(names)))
        if self.positive_label not in names:
            raise ValueError(f"positive label '{self.positive_label}' is not one of {list(names)}")
        return [list(names).index(self.positive_label)]

    @classmethod
    def from_key(cls, key: str) -> F1Definition:
        """The definition that ``key`` names; ValueError for anything else."""
        if key == "macro":
            return cls("macro")
        average, separator, label = key.partition(":")
        if average != "binary" or not separator or not label:
            raise ValueError(f"'{key}' is no F1 definition, expected 'macro' or 'binary:LABEL'")
        return cls("binary", label)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [classes, classes]: row = true class, column = predicted class."""
    flat = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def f1_from_confusion(confusion: np.ndarray, definition: F1Definition, names: Sequence[str]) -> float:
    """The F1 of ``definition``, 0 to 1; a class that never occurs and is never predicted has 0 in the macro mean."""
    return float(_f1_per_class(confusion)[definition.averaged(names)].mean())


def f1_score(labels: np.ndarray, predictions: np.ndarray, definition: F1Definition, names: Sequence[str]) -> float:
    """The F1 of class ids ``predictions`` [n] against ``labels`` [n]."""
    return f1_from_confusion(confusion_matrix(labels, predictions, len(names)), definition, names)


def classification_scores(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], definition: F1Definition
) -> dict[str, Any]:
    """Scores of ``probabilities`` [n, classes] against class ids ``labels`` [n], as plain numbers.

    Returns ``f1``, ``accuracy``, ``log_loss`` (nats per text), ``per_class`` (name to precision, recall, f1, support)
    and ``confusion`` (rows: true class). Raises ValueError for no texts, a wrong shape or a non-finite probability.
    """
    labels = np.asarray(labels, dtype=np.int64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (len(labels), len(names)) or not len(labels):
        raise ValueError(
            f"expected probabilities of shape ({len(labels)}, {len(names)}) with at least one row, "
            f"found {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        rows = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise ValueError(f"{rows} of {len(labels)} texts have a probability that is not finite")
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(names))
    of_true_class = probabilities[np.arange(len(labels)), labels]
    return {
        **scores_from_confusion(confusion, names, definition),
        # Clipped like everywhere in the field: one confident mistake must not make the mean infinite.
        "log_loss": float(-np.log(np.clip(of_true_class, 1e-12, 1.0)).mean()),
    }


def scores_from_confusion(confusion: np.ndarray, names: Sequence[str], definition: F1Definition) -> dict[str, Any]:
    """``f1``, ``accuracy``, ``per_class`` and ``confusion`` as ``classification_scores`` has them: all but log loss."""
    diagonal = np.diag(confusion).astype(np.float64)
    precision, recall = _ratio(diagonal, confusion.sum(axis=0)), _ratio(diagonal, confusion.sum(axis=1))
    f1 = _f1_per_class(confusion)
    return {
        "f1": f1_from_confusion(confusion, definition, names),
        "accuracy": float(diagonal.sum() / confusion.sum()),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(confusion[i].sum()),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }


def _f1_per_class(confusion: np.ndarray) -> np.ndarray:
    return _ratio(2.0 * np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(denominator)), where=denominator > 0)
