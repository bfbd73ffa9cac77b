"""How sure a score is: bootstrap intervals, McNemar's test, and calibration. Plain numpy on counts.

Resampling n texts with replacement only changes how often each kind of outcome occurs, and these counts follow a
multinomial distribution. So a bootstrap replicate is one draw of a confusion matrix, whatever n is: 2,000 of them take
milliseconds for 25,000 texts (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13).

The same counts give the same interval, bit for bit, in every version of numpy: a decision can be replayed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import csr_array

REPLICATES: Final = 2_000
COVERAGE: Final = 0.95
BINS: Final = 15  # of confidence, equally wide: what Guo et al. (2017) use
_CHUNK_CELLS: Final = 2_000_000  # numbers of one chunk of replicates, which bounds the memory

# What is read from a document must be small enough to compute with.
Count = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[int, Field(ge=1, le=2**40)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Interval(BaseModel):
    """A value and its 95 % interval: bootstrap percentiles (``interval``) or normal (``mean_interval``)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Bin(BaseModel):
    """Texts whose confidence, the probability of the predicted class, is above ``low`` and at most ``high``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    texts: Positive
    confidence: float
    accuracy: Share


def interval(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], replicates: int = REPLICATES
) -> Interval:
    """The interval of ``statistic`` of counts, int [cells], when the texts behind them are drawn anew.

    ``statistic`` takes counts [replicates, cells] and returns values [replicates].
    """
    counts = np.asarray(counts, dtype=np.int64)
    values = np.concatenate([statistic(drawn) for drawn in _resampled(counts, replicates)])
    low, high = np.percentile(values, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)])
    return Interval(value=float(statistic(counts[None])[0]), low=float(low), high=float(high))


def mean_interval(values: np.ndarray) -> Interval:
    """The interval of the mean of ``values``, float [texts], by the normal approximation: for many texts the same."""
    half = 1.959964 * float(np.std(values)) / np.sqrt(max(len(values), 1))
    mean = float(np.mean(values))
    return Interval(value=mean, low=mean - half, high=mean + half)


class F1OfCells:
    """F1 as a function of how often each kind of text (a cell: true and predicted class) occurs.

    ``true``, ``predicted``: int [cells]. ``averaged``: the classes whose F1s are averaged, all alike. The same
    arithmetic as ``serve_app.inference.metrics.f1_from_confusion``.
    """

    def __init__(self, true: np.ndarray, predicted: np.ndarray, classes: int, averaged: Sequence[int]) -> None:
        self._averaged = averaged
        cells = np.arange(len(true))
        right = cells[true == predicted]
        # Few of many classes meet in a cell, so matrices that say which are sparse.
        self._hits = csr_array((np.ones(len(right)), (right, true[right])), shape=(len(true), classes))
        places = (np.concatenate([cells, cells]), np.concatenate([true, predicted]))
        self._occurrences = csr_array((np.ones(2 * len(true)), places), shape=(len(true), classes))

    @classmethod
    def of_confusion(cls, classes: int, averaged: Sequence[int]) -> F1OfCells:
        """Of a confusion matrix, flattened: rows are true classes."""
        true, predicted = np.divmod(np.arange(classes * classes), classes)
        return cls(true, predicted, classes, averaged)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """F1 [replicates] of counts [replicates, cells]."""
        hits, occurrences = counts @ self._hits, counts @ self._occurrences
        f1 = np.divide(2.0 * hits, occurrences, out=np.zeros(hits.shape), where=occurrences > 0)
        return f1.take(self._averaged, axis=1).mean(axis=1)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that two models are right equally often (McNemar 1947): texts that only one got right."""
    from scipy.stats import binomtest  # takes a second to import, and most commands compare nothing

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[Bin]:
    """The bins of a reliability diagram that have texts.

    ``labels``: class ids, int [texts]; ``probabilities``: [texts, classes].
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = []
    for index in np.unique(place).tolist():
        inside = place == index
        found.append(
            Bin(
                low=index / BINS,
                high=(index + 1) / BINS,
                texts=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        )
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between confidence and accuracy, weighted by the texts of the bins; 0 is perfect."""
    texts = sum(each.texts for each in bins)
    return sum(each.texts * abs(each.accuracy - each.confidence) for each in bins) / max(texts, 1)


def _resampled(counts: np.ndarray, replicates: int) -> Iterator[np.ndarray]:
    total = int(counts.sum())
    if not total:
        raise ValueError("an interval needs at least one text")
    # RandomState, not Generator: its streams never change, so that a replay in years draws the same numbers.
    draw = np.random.RandomState(20_250_101)
    chunk = max(1, _CHUNK_CELLS // len(counts))
    for start in range(0, replicates, chunk):
        yield draw.multinomial(total, counts / total, size=min(chunk, replicates - start))
