"""Candidate and production on the same texts: what changes for whom, and whether it could be chance.

Everything here follows from ``cells``: how many texts have which true class and which two predictions. So a comparison
can be computed again from a recorded one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gate.slices import averaged_in_slice
from gate.statistics import Count, F1OfCells, Interval, Positive, Share, interval, mcnemar
from serve_app.inference.metrics import F1Definition

EXAMPLES = 20  # ids of texts gained, and of texts lost

Cell = tuple[Count, Count, Count, Positive]  # true class, production's class, the candidate's class, texts


class Difference(BaseModel):
    """F1 of the candidate minus F1 of production on some texts (``name``: which). Both are 0 to 1.

    In a slice it is the F1 over the classes that occur there (``gate.slices.averaged_in_slice``).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    texts: Positive
    candidate_f1: Share
    production_f1: Share
    difference: Interval
    cells: list[Cell] = Field(min_length=1)


class Comparison(BaseModel):
    """Both models on the same test split. ``gained``: texts that only the candidate gets right; ``lost``: that only
    production does. ``agreement``: share of texts with the same prediction. ``mcnemar_p``: chance of a split between
    gained and lost at least as uneven, if both models were equally often right.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    labels: list[str]
    f1_definition: str
    whole: Difference
    slices: list[Difference]
    gained: Count
    lost: Count
    agreement: Share
    mcnemar_p: float
    gained_examples: list[str]
    lost_examples: list[str]

    @model_validator(mode="after")
    def _can_be_computed(self) -> Comparison:
        F1Definition.from_key(self.f1_definition).averaged(self.labels)
        for part in (self.whole, *self.slices):
            if any(max(cell[:3]) >= len(self.labels) for cell in part.cells):
                raise ValueError(f"'{part.name}' has a class beyond the {len(self.labels)} labels")
            kinds = [cell[:3] for cell in part.cells]
            if kinds != sorted(set(kinds)):
                raise ValueError(f"'{part.name}' has cells that are not in order, each kind once")
        return self

    @property
    def significant(self) -> bool:
        """Whether the interval of the F1 difference lies above zero."""
        return self.whole.difference.low > 0.0


def compare(
    ids: Sequence[str],
    labels: np.ndarray,
    production: np.ndarray,
    candidate: np.ndarray,
    *,
    label_names: Sequence[str],
    definition: F1Definition,
    slices: Mapping[str, np.ndarray],
) -> Comparison:
    """Compares probabilities [texts, classes] of both on the texts ``ids`` with class ids ``labels`` [texts].

    ``slices``: name to members, bool [texts]. Examples are ids, those first whose probability moved the most.
    """
    predicted = np.stack([labels, production.argmax(axis=1), candidate.argmax(axis=1)], axis=1).astype(np.int64)
    moved = (candidate - production)[np.arange(len(labels)), labels]
    was, now = predicted[:, 1] == labels, predicted[:, 2] == labels
    order = np.argsort(-np.abs(moved), kind="stable")
    gained, lost = ([ids[i] for i in order if chosen[i]] for chosen in (now & ~was, was & ~now))
    return _computed(
        _cells(predicted),
        {name: _cells(predicted[members]) for name, members in slices.items()},
        list(label_names),
        definition,
        gained[:EXAMPLES],
        lost[:EXAMPLES],
    )


def recomputed(recorded: Comparison) -> Comparison:
    """The comparison that ``recorded``'s cells give."""
    return _computed(
        recorded.whole.cells,
        {each.name: each.cells for each in recorded.slices},
        recorded.labels,
        F1Definition.from_key(recorded.f1_definition),
        recorded.gained_examples,
        recorded.lost_examples,
    )


def confusion_of(cells: Sequence[Cell], classes: int, *, candidate: bool) -> np.ndarray:
    """The confusion matrix, int64 [classes, classes], of one of the two models."""
    confusion = np.zeros((classes, classes), dtype=np.int64)
    for true, before, after, texts in cells:
        confusion[true, after if candidate else before] += texts
    return confusion


def _computed(
    cells: list[Cell],
    slices: Mapping[str, list[Cell]],
    labels: list[str],
    definition: F1Definition,
    gained: list[str],
    lost: list[str],
) -> Comparison:
    averaged = definition.averaged(labels)
    only_candidate = sum(texts for true, before, after, texts in cells if after == true != before)
    only_production = sum(texts for true, before, after, texts in cells if before == true != after)
    same = sum(texts for _, before, after, texts in cells if before == after)
    whole = difference_of("all texts", cells, len(labels), averaged)
    return Comparison(
        labels=labels,
        f1_definition=definition.key,
        whole=whole,
        slices=[
            difference_of(name, own, len(labels), averaged_in_slice(averaged, np.unique([cell[0] for cell in own])))
            for name, own in slices.items()
        ],
        gained=only_candidate,
        lost=only_production,
        agreement=same / whole.texts,
        mcnemar_p=mcnemar(only_candidate, only_production),
        gained_examples=gained,
        lost_examples=lost,
    )


def difference_of(name: str, cells: list[Cell], classes: int, averaged: Sequence[int]) -> Difference:
    """The F1 difference on the texts of ``cells``. ``averaged``: as in ``F1OfCells``."""
    kinds = np.asarray([cell[:3] for cell in cells], dtype=np.int64)
    counts = np.asarray([cell[3] for cell in cells], dtype=np.int64)
    before, after = (F1OfCells(kinds[:, 0], kinds[:, place], classes, averaged) for place in (1, 2))

    def difference(drawn: np.ndarray) -> np.ndarray:
        return after(drawn) - before(drawn)

    return Difference(
        name=name,
        texts=int(counts.sum()),
        candidate_f1=float(after(counts[None])[0]),
        production_f1=float(before(counts[None])[0]),
        difference=interval(counts, difference),
        cells=cells,
    )


def _cells(predicted: np.ndarray) -> list[Cell]:
    """The kinds of rows of ``predicted`` [texts, 3], each with its count."""
    kinds, counts = np.unique(predicted, axis=0, return_counts=True)
    return [(int(a), int(b), int(c), int(n)) for (a, b, c), n in zip(kinds, counts, strict=True)]
