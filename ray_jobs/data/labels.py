"""From labels as read (ids, names, anything) to class ids 0..k-1, their names, and the F1 that is measured."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from configs.data import DataConfig
from ray_jobs.data.rows import DataError, RawData, Rows
from serve_app.inference.metrics import F1Definition

LabelKind = Literal["int", "str"]

_WHOLE = re.compile(r"[+-]?\d{1,18}(?:\.0*)?", re.ASCII)
_FRACTION = re.compile(r"[+-]?\d*\.\d+", re.ASCII)


@dataclass(frozen=True)
class Labels:
    """Class names in the order of their ids, how the data wrote them, and the class ids (int64) of the rows."""

    names: tuple[str, ...]
    kind: LabelKind
    train: np.ndarray
    test: np.ndarray | None


def resolve_labels(raw: RawData, data: DataConfig) -> Labels:
    """Class ids and names of all rows of ``raw``.

    A label written as a whole number is an id, whatever the format (``1``, ``"1"``, ``1.0``, ``true``), and ids must
    be 0..k-1; anything else is a name. Names come from ``data.label_names``, else from the source, else they are the
    sorted names found in train (or the ids as text). With ``data.label_names`` numbers can be names too: when they
    list every label. Raises DataError for a label that is missing, NaN, fractional, out of range or unknown, for ids
    with gaps, names mixed with numbers, and fewer than two classes.
    """
    names = _given_names(data, raw.class_names)
    train = _parse_all(raw.train)
    test = _parse_all(raw.test) if raw.test is not None else None
    if data.label_names and names and {str(value) for value in train} <= set(names):
        train = [str(value) for value in train]
        test = [str(value) for value in test] if test is not None else None
    splits = [("train", raw.train, train)]
    if raw.test is not None and test is not None:
        splits.append(("test", raw.test, test))
    kind = _kind(splits)
    if kind == "int":
        names = names or _names_of_ids(raw.train, train)
        ids = [_check_ids(split, rows, values, names) for split, rows, values in splits]
    else:
        origin = "data.label_names" if data.label_names else "the source's classes" if names else "train"
        names = names or tuple(sorted(set(map(str, train))))
        ids = [_ids_of_names(split, rows, values, names, origin) for split, rows, values in splits]
        # Names that are the ids themselves are integer labels that somebody also listed.
        kind = "int" if names == _numbered(len(names)) else kind
    _require_two_classes(raw.train, names, ids[0])
    return Labels(names, kind, ids[0], ids[1] if len(ids) == 2 else None)


def f1_definition(names: Sequence[str], kind: LabelKind, positive_label: str | None) -> F1Definition:
    """Two classes: the F1 of ``positive_label``, by default the class with id 1 of integer labels, else the one named
    ``positive``. More classes: the macro mean. Raises DataError when the positive class cannot be told."""
    if len(names) > 2:
        if positive_label is not None:
            raise DataError(
                f"data.positive_label is '{positive_label}', but there are {len(names)} classes "
                f"({_listed(names)}), whose F1 is the macro mean: remove data.positive_label"
            )
        return F1Definition("macro")
    if positive_label is None:
        positive_label = names[1] if kind == "int" else "positive"
        if positive_label not in names:
            raise DataError(
                f"which class is the positive one? None of {_listed(names)} is named 'positive': set "
                "data.positive_label to the class whose F1 is to be measured"
            )
    if positive_label not in names:
        raise DataError(
            f"data.positive_label is '{positive_label}', but the classes are {_listed(names)}: set it to one of them"
        )
    return F1Definition("binary", positive_label)


def _given_names(data: DataConfig, of_source: tuple[str, ...] | None) -> tuple[str, ...] | None:
    names = tuple(normal_name(name) for name in data.label_names) if data.label_names else None
    if names is None:
        return of_source
    if of_source is not None and names != of_source:
        if len(names) != len(of_source):
            raise DataError(
                f"data.label_names has {len(names)} names, but the source has {len(of_source)} classes "
                f"({_listed(of_source)}): give one name per class, or remove data.label_names"
            )
        if set(names) == set(of_source):
            raise DataError(
                f"data.label_names is {_listed(names)}, but in the source the ids mean "
                f"{_listed(of_source)}, in this order: use this order, or remove data.label_names"
            )
    return names


def normal_name(name: str) -> str:
    """A class name without space around it, in Unicode NFC."""
    return unicodedata.normalize("NFC", name.strip())


def _parse_all(rows: Rows) -> list[int | str]:
    known: dict[tuple[type, Any], int | str] = {}  # few distinct labels, many rows
    parsed = []
    for index, value in enumerate(rows.labels):
        if isinstance(value, str | int):
            key = (value.__class__, value)
            if key not in known:
                known[key] = _parse(value, rows, index)
            parsed.append(known[key])
        else:
            parsed.append(_parse(value, rows, index))
    return parsed


def _parse(value: Any, rows: Rows, index: int) -> int | str:
    if isinstance(value, str):
        text = normal_name(value)
        if text == "" or text.lower() == "nan":
            raise DataError(f"{rows.where(index)}: the label is missing ({value!r}): fill it in or remove the row")
        if _WHOLE.fullmatch(text):
            return int(text.partition(".")[0])
        if not _FRACTION.fullmatch(text):
            return text
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{rows.where(index)}: the label is missing ({value}): fill it in or remove the row")
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    elif not isinstance(value, float):
        raise DataError(
            f"{rows.where(index)}: the label is of type {type(value).__name__}, expected one class per "
            "text, as a name or a whole number"
        )
    raise DataError(
        f"{rows.where(index)}: the label {value} is not a whole number: labels are class names or "
        "0, 1, ..., k-1; turn scores into classes first"
    )


def _kind(splits: Sequence[tuple[str, Rows, list[int | str]]]) -> LabelKind:
    """Whether labels are ids or names; DataError at the first row of the rarer kind when there are both."""
    places: dict[type, list[tuple[Rows, int]]] = {int: [], str: []}
    for _, rows, values in splits:
        for index, value in enumerate(values):
            places[type(value)].append((rows, index))
    if places[int] and places[str]:
        rows, index = min(places.values(), key=len)[0]
        raise DataError(
            f"{rows.where(index)}: the label {rows.labels[index]!r} stands among {len(places[int])} "
            f"numbers and {len(places[str])} names: use one kind, or list every label in data.label_names"
        )
    return "int" if places[int] else "str"


def _names_of_ids(rows: Rows, values: Sequence[int | str]) -> tuple[str, ...]:
    """The ids as names, when they are 0..k-1 without a gap."""
    found = sorted({value for value in values if isinstance(value, int)})
    if found != list(range(len(found))):
        unexpected = next(value for position, value in enumerate(found) if value != position)
        raise DataError(
            f"{rows.where(values.index(unexpected))}: label {unexpected}, but integer labels must be 0 to "
            f"k-1 without a gap, found {_listed(found)}: renumber them, or list them in data.label_names "
            "to use them as names"
        )
    return _numbered(len(found))


def _check_ids(split: str, rows: Rows, values: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    wrong = [index for index, value in enumerate(values) if not (isinstance(value, int) and 0 <= value < len(names))]
    if wrong:
        raise DataError(
            f"{rows.where(wrong[0])}: unknown label {values[wrong[0]]} in {split}, in {len(wrong)} of "
            f"{len(values)} rows; expected 0 to {len(names) - 1} ({_listed(names)}): correct the rows, or "
            "data.label_names"
        )
    return np.asarray(values, dtype=np.int64)


def _ids_of_names(split: str, rows: Rows, values: Sequence[int | str], names: Sequence[str], origin: str) -> np.ndarray:
    id_of: dict[int | str, int] = {name: class_id for class_id, name in enumerate(names)}
    ids = np.asarray([id_of.get(value, -1) for value in values], dtype=np.int64)
    wrong = np.flatnonzero(ids < 0)
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"{rows.where(index)}: unknown label '{values[index]}' in {split}, in {len(wrong)} of "
            f"{len(ids)} rows; {origin} has {_listed(names)}: correct the rows, or list every class in "
            "data.label_names"
        )
    return ids


def _require_two_classes(rows: Rows, names: Sequence[str], ids: np.ndarray) -> None:
    files = _listed([name for name, _ in rows.parts], most=3, quote=False)
    present = np.flatnonzero(np.bincount(ids, minlength=len(names)))
    if len(present) < 2:
        only = f"one class, {names[present[0]]!r}" if len(present) else "no label"
        raise DataError(
            f"{files}: all {len(ids)} training rows have {only}: a classifier needs at least two classes; "
            "check data.label_column and the files"
        )
    if len(present) < len(names):
        missing = [name for class_id, name in enumerate(names) if class_id not in present]
        raise DataError(
            f"{files}: no training text has the class {_listed(missing)}: add some, or remove the class "
            "from the data's class names (data.label_names)"
        )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _listed(values: Sequence[Any], most: int = 10, quote: bool = True) -> str:
    shown = [f"'{value}'" if quote else str(value) for value in values[:most]]
    return ", ".join(shown) + (f", ... ({len(values)} in all)" if len(values) > most else "")
