"""The pictures of a score (confusion matrix, precision-recall and reliability curves) and of a comparison.

No pyplot: no global state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gate.comparison import Comparison
from gate.statistics import Bin

_MOST_NAMES = 30  # more class names than this cannot be read in a picture
_BETTER, _WORSE, _UNSURE = "#009e73", "#d55e00", "#2f7fc1"  # of Okabe and Ito: the colour-blind tell them apart too


def confusion_figure(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str) -> Figure:
    """Counts [classes, classes], rows are true classes; colour is the share of the row."""
    counts = np.asarray(confusion, dtype=np.int64)
    size = float(np.clip(2.5 + 0.6 * len(names), 4.0, 14.0))
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the true class")
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def precision_recall_figure(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], positive: str | None, title: str
) -> Figure:
    """One curve for the class ``positive``, or one per class against the rest. ``probabilities``: [texts, classes]."""
    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [positive] if positive is not None else list(names)
    for name in shown:
        column = list(names).index(name)
        precision, recall = precision_recall_curve(labels == column, probabilities[:, column])
        axes.step(recall, precision, where="post", label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    if len(shown) <= _MOST_NAMES:
        legend = axes.legend(loc="lower left")
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.grid(visible=True, alpha=0.3)
    return figure


def reliability_figure(bins: Sequence[Bin], title: str) -> Figure:
    """Accuracy against confidence; on the diagonal a model is calibrated. Points grow with the number of texts."""
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    confidence, accuracy = [each.confidence for each in bins], [each.accuracy for each in bins]
    total = sum(each.texts for each in bins)
    axes.scatter(confidence, accuracy, s=[20 + 400 * each.texts / total for each in bins], alpha=0.8)
    axes.plot(confidence, accuracy, linewidth=1, alpha=0.5)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    axes.legend(loc="upper left")
    axes.grid(visible=True, alpha=0.3)
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Forest plot: F1 of the candidate minus F1 of production with 95 % intervals, on all texts and on each slice; of
    many slices, those that lost the most."""
    slices = comparison.slices
    if len(slices) > _MOST_NAMES:
        slices = sorted(slices, key=lambda each: each.candidate_f1 - each.production_f1)[:_MOST_NAMES]
    rows = [comparison.whole, *slices]
    figure = Figure(figsize=(8.0, 1.3 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0.0, color="0.6", linestyle="--", linewidth=1)
    for place, row in enumerate(rows):
        found = row.difference
        colour = _BETTER if found.low > 0.0 else _WORSE if found.high < 0.0 else _UNSURE
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
        axes.plot(found.value, place, "o", color=colour, markersize=8 if row is comparison.whole else 5)
    # Names may be of any length; the picture is not.
    names = [f"{row.name if len(row.name) <= 40 else row.name[:39] + '…'} ({row.texts:,})" for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(
        xlabel="F1 of the candidate minus F1 of production, 95 % interval",
        title=f"{comparison.gained} texts gained, {comparison.lost} lost, McNemar p = {comparison.mcnemar_p:.3g}",
    )
    axes.grid(visible=True, axis="x", alpha=0.3)
    return figure


def precision_recall_curve(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every distinct threshold, from the highest down. ``is_class``: bool [texts].

    Without a text of the class, recall is 0 everywhere.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_class[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # texts with equal scores come together
    found = hits[ends]
    return found / (ends + 1), found / max(int(is_class.sum()), 1)
