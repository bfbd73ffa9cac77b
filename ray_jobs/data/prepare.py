"""From a source to three clean, disjoint, digested splits.

clean -> drop empty -> class ids -> one row per text -> test split (the source's, or by content hash) -> training texts
that stand in test removed -> stratified validation split -> at most ``max_*_texts`` each -> canonical order -> digest.

Everything is decided by content: the same rows in any order give the same three splits, to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from configs.data import DataConfig
from ray_jobs.data.cleaning import clean_text
from ray_jobs.data.labels import f1_definition, resolve_labels
from ray_jobs.data.report import DataReport, SplitReport
from ray_jobs.data.rows import DataError, RawData, Rows
from ray_jobs.data.sources import load_raw
from ray_jobs.data.splitting import find_duplicates, shares, stratified
from serve_app.inference.digests import content_id, split_digest
from serve_app.inference.metrics import F1Definition

_CONFLICTS_SHOWN = 5
_MOST_SLICES = 50


@dataclass(frozen=True)
class Split:
    """Texts with ids and class ids (int64), in the canonical order: by content id, which is as good as shuffled.

    ``slices``: for each slice column its value for every text; of the test split only.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    digest: str
    slices: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, the class names in the order of their ids, and which F1 is measured."""

    train: Split
    validation: Split
    test: Split
    label_names: tuple[str, ...]
    f1: F1Definition
    report: DataReport


def prepare(data: DataConfig, progress: Callable[[str], None] | None = None) -> Dataset:
    """The data that ``data`` describes, ready to be tokenised. ``progress`` gets a line per step.

    Raises DataError, which names file and row and the fix, for data that cannot be read or used.
    """
    say = progress or (lambda line: None)
    say(f"reading data from {data.source}")
    return prepare_rows(load_raw(data), data, say)


def prepare_rows(raw: RawData, data: DataConfig, say: Callable[[str], None] = lambda line: None) -> Dataset:
    """``prepare`` for rows that have been read already."""
    counts = {"train": SplitReport(read=len(raw.train))}
    if raw.test is not None:
        counts["test"] = SplitReport(read=len(raw.test))
    say(f"cleaning {sum(count.read for count in counts.values()):,} texts")
    raw = RawData(
        train=_cleaned(raw.train, data, counts["train"]),
        test=None if raw.test is None else _cleaned(raw.test, data, counts["test"]),
        class_names=raw.class_names,
        provenance=raw.provenance,
    )
    labels = resolve_labels(raw, data)
    f1 = f1_definition(labels.names, labels.kind, data.positive_label)
    report = DataReport(raw.provenance, labels.names, f1.key, source=counts)
    say("removing duplicates and splitting")
    train = _Table.of(raw.train, labels.train).deduplicated("train", raw.train, report)
    if raw.test is not None and labels.test is not None:
        source_test = _Table.of(raw.test, labels.test)
        train = _without_test_texts(train, source_test, report)
        test = source_test.deduplicated("test", raw.test, report)
    else:
        report.test_from_train = True
        in_test = shares(train.content_ids, "test", data.seed) < data.test_fraction
        train, test = train.take(np.flatnonzero(~in_test)), train.take(np.flatnonzero(in_test))
    train, validation = _validation_split(train, data, labels.names)
    splits = {
        name: _finished(name, table, data, report)
        for name, table in (("train", train), ("validation", validation), ("test", test))
    }
    return Dataset(splits["train"], splits["validation"], splits["test"], labels.names, f1, report)


@dataclass(frozen=True)
class _Table:
    """Rows on their way: clean texts with ids, content ids, class ids and slices."""

    ids: list[str]
    content_ids: list[str]
    texts: list[str]
    labels: np.ndarray
    slices: dict[str, list[str]]

    @classmethod
    def of(cls, rows: Rows, labels: np.ndarray) -> _Table:
        content_ids = [content_id(text) for text in rows.texts]
        ids = content_ids if rows.ids is None else _checked_ids(rows)
        return cls(ids, content_ids, list(rows.texts), labels, _slices(rows))

    def take(self, indices: np.ndarray) -> _Table:
        chosen = indices.tolist()
        return _Table(
            [self.ids[i] for i in chosen],
            [self.content_ids[i] for i in chosen],
            [self.texts[i] for i in chosen],
            self.labels[indices],
            {column: [values[i] for i in chosen] for column, values in self.slices.items()},
        )

    def deduplicated(self, split: str, rows: Rows, report: DataReport) -> _Table:
        # Equal texts without an id of their own may still differ in a slice: not their order may decide then.
        keys = list(zip(self.ids, *self.slices.values(), strict=True)) if self.slices else self.ids
        found = find_duplicates(self.texts, self.labels, keys)
        counts = report.source[split]
        counts.duplicates_removed = found.removed
        counts.conflicting_texts, counts.conflicting_rows_removed = len(found.conflicts), found.conflicting_rows
        for indices in found.conflicts[: max(0, _CONFLICTS_SHOWN - len(report.conflicts))]:
            text = self.texts[indices[0]]
            report.conflicts.append(
                {
                    "split": split,
                    "text": text if len(text) <= 80 else text[:79] + "…",
                    "labels": sorted({report.label_names[int(self.labels[index])] for index in indices}),
                    "rows": [rows.where(index) for index in indices[:_CONFLICTS_SHOWN]],
                }
            )
        return self.take(found.kept)


def _cleaned(rows: Rows, data: DataConfig, counts: SplitReport) -> Rows:
    """``rows`` with clean texts, without empty ones; DataError for what is no text."""
    texts, kept = [], []
    for index, text in enumerate(rows.texts):
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{rows.where(index)}: the text is of type {type(text).__name__} ({str(text)[:40]!r}), "
                f"expected a string: check data.text_column (now '{data.text_column}')"
            )
        clean = clean_text(text) if text else ""
        if not clean:
            counts.empty_dropped += 1
            if data.empty_texts == "error":
                raise DataError(
                    f"{rows.where(index)}: the text is {'missing' if text is None else 'empty'}: fill it "
                    "in, remove the row, or set data.empty_texts=drop"
                )
            continue
        counts.changed_by_cleaning += clean != text
        texts.append(clean)
        kept.append(index)
    if not texts:
        raise DataError(
            f"{rows.where(0)}: this text and all {len(rows) - 1} after it are empty: check data.text_column"
        )
    return rows.replace(texts, kept)


def _checked_ids(rows: Rows) -> list[str]:
    first_of: dict[str, int] = {}
    for index, value in enumerate(rows.ids or ()):
        row_id = "" if value is None or value != value else str(value).strip()  # NaN is unlike itself
        if not row_id:
            raise DataError(
                f"{rows.where(index)}: the id is missing: fill it in, or remove data.id_column to use content hashes"
            )
        if row_id in first_of:
            raise DataError(
                f"{rows.where(index)}: the id '{row_id}' was already used ({rows.where(first_of[row_id])})"
                ": make ids unique, or remove data.id_column to use content hashes"
            )
        first_of[row_id] = index
    return list(first_of)


def _slices(rows: Rows) -> dict[str, list[str]]:
    """The slice columns as strings; DataError for one with too many different values."""
    slices = {}
    for column, found in rows.slices.items():
        # None, NaN (which is unlike itself) and white space.
        values = ["" if value is None or value != value else str(value).strip() for value in found]
        slices[column] = [value or "missing" for value in values]
        different = sorted(set(slices[column]))
        if len(different) > _MOST_SLICES:
            raise DataError(
                f"{rows.parts[0][0]}: the column '{column}' has {len(different):,} different values "
                f"({', '.join(map(repr, different[:3]))}, ...), and a slice column at most {_MOST_SLICES}: take it out "
                "of data.slice_columns, or put its values into groups"
            )
    return slices


def _without_test_texts(train: _Table, test: _Table, report: DataReport) -> _Table:
    """``train`` without any text of the source's whole test split, so that ``max_test_texts`` does not change train."""
    labels_in_test: dict[str, set[int]] = {}
    for text, label in zip(test.texts, test.labels.tolist(), strict=True):
        labels_in_test.setdefault(text, set()).add(label)
    keep = np.asarray([text not in labels_in_test for text in train.texts], dtype=bool)
    removed = np.flatnonzero(~keep)
    report.train_in_test = len(removed)
    report.train_in_test_other_label = sum(
        labels_in_test[train.texts[index]] != {int(train.labels[index])} for index in removed
    )
    return train.take(np.flatnonzero(keep))


def _validation_split(train: _Table, data: DataConfig, names: Sequence[str]) -> tuple[_Table, _Table]:
    per_class = np.bincount(train.labels, minlength=len(names))
    if (per_class < 2).any():
        short = [f"'{names[i]}' ({per_class[i]})" for i in np.flatnonzero(per_class < 2).tolist()]
        raise DataError(
            f"too few training texts after cleaning, for class {', '.join(short)}: train and validation "
            "need at least one text of every class each; add texts, or lower data.test_fraction where "
            "the test split is cut off train"
        )
    # As many as asked for, but at least one per class and never all of a class.
    count = int(np.clip(round(data.validation_fraction * len(train.texts)), len(names), (per_class - 1).sum()))
    chosen = stratified(train.content_ids, train.labels, count, "validation", data.seed)
    rest = np.setdiff1d(np.arange(len(train.texts)), chosen, assume_unique=True)
    return train.take(rest), train.take(chosen)


def _finished(name: str, table: _Table, data: DataConfig, report: DataReport) -> Split:
    """The split in its canonical order, at most ``data.max_NAME_texts`` of it, with every class, digested."""
    names = report.label_names
    per_class = np.bincount(table.labels, minlength=len(names))
    missing = [names[i] for i in np.flatnonzero(per_class == 0).tolist()]
    if missing:
        fix = "raise data.test_fraction or add texts" if report.test_from_train else "add texts of every class"
        raise DataError(
            f"the {name} split has no text of class {', '.join(map(repr, missing))} "
            f"({len(table.texts)} texts in all), so its F1 would mean nothing: {fix}"
        )
    most = getattr(data, f"max_{name}_texts")
    if most is not None and most < len(table.texts):
        if most < len(names):
            raise DataError(
                f"data.max_{name}_texts is {most}, but there are {len(names)} classes: raise it, every "
                "class needs a text"
            )
        report.not_sampled[name] = len(table.texts) - most
        table = table.take(stratified(table.content_ids, table.labels, most, "sample", data.seed))
    table = table.take(np.lexsort((np.asarray(table.ids), np.asarray(table.content_ids))))
    if name != "test":  # slices are for scores: what is trained on is the same data with and without them
        table = replace(table, slices={})
    digest = split_digest(table.ids, table.texts, table.labels, names, table.slices)
    per_class = np.bincount(table.labels, minlength=len(names))
    report.classes[name] = {label: int(count) for label, count in zip(names, per_class, strict=True)}
    report.digests[name] = digest
    for column, values in table.slices.items():
        report.test_slices[column] = dict(sorted(Counter(values).items()))
    return Split(table.ids, table.texts, table.labels, digest, table.slices)
