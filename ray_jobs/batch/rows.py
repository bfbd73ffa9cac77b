"""Which rows of a part can be scored, and why the others cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.batch.parts import LINE, Columns, Part
from serve_app.schemas import is_empty


@dataclass(frozen=True)
class Text:
    """A text to score. ``place``: of its row in the part. ``cut``: it is the beginning of a longer one."""

    place: int
    text: str
    cut: bool = False


@dataclass(frozen=True)
class Rejection:
    """A row without prediction: its ``place`` in the part, the ``reason`` as a word for programs, and in words."""

    place: int
    reason: str
    message: str


def texts_of(part: Part, columns: Columns, *, max_chars: int, truncate: bool) -> tuple[list[Text], list[Rejection]]:
    """The texts of a part, and the rows without one. A text over ``max_chars`` characters is cut, or rejected."""
    texts, rejected = [], []
    for place, value in enumerate(_values(part, columns)):
        found = value if isinstance(value, Rejection) else _checked(place, value, columns.text, max_chars, truncate)
        if isinstance(found, Text):
            texts.append(found)
        else:
            rejected.append(found)
    return texts, rejected


def too_long(place: int, what: str) -> Rejection:
    """The rejection of a text that would have to be cut."""
    return Rejection(place, "text_too_long", f"the text has {what}; with batch_score.truncate it would be cut")


def rejected_lines(part: Part, rejected: Sequence[Rejection], file: str) -> bytes:
    """The rejections as JSON Lines: ``file`` and row (from 1), reason and message, and the row as it was read."""
    lines = []
    for rejection in sorted(rejected, key=lambda one: one.place):
        found = {
            "file": file,
            "row": part.first_row + rejection.place,
            "reason": rejection.reason,
            "message": rejection.message,
            "input": _row(part, rejection.place),
        }
        lines.append(json.dumps(found) + "\n")
    return "".join(lines).encode("ascii")


def _checked(place: int, value: Any, column: str, max_chars: int, truncate: bool) -> Text | Rejection:
    if value is None:
        return Rejection(place, "missing_text", f"'{column}' is missing or null")
    if not isinstance(value, str):
        return Rejection(place, "not_text", f"'{column}' is of type {type(value).__name__}, expected a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Rejection(place, "not_text", f"'{column}' has half of a character (an unpaired surrogate)")
    if is_empty(value):
        return Rejection(place, "empty_text", f"'{column}' has no visible characters")
    if len(value) <= max_chars:
        return Text(place, value)
    if truncate:
        return Text(place, value[:max_chars], cut=True)
    return too_long(place, f"{len(value)} characters, at most {max_chars} are taken")


def _values(part: Part, columns: Columns) -> Iterator[Any]:
    """For every row its text as it stands there, whatever it is, or the rejection of a row that cannot be read."""
    lines = part.is_lines
    for place, value in enumerate(_strings(part.table.column(LINE if lines else columns.text))):
        if place in part.unreadable:
            yield Rejection(place, "unreadable_row", part.unreadable[place])
        elif isinstance(value, bytes):
            yield Rejection(place, "unreadable_row", f"'{columns.text}' is not UTF-8")
        elif lines and value is not None:
            yield _of_record(place, value, columns)
        else:
            yield value


def _of_record(place: int, line: str, columns: Columns) -> Any:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Rejection(place, "unreadable_row", f"not JSON ({error})")
    if not isinstance(record, dict):
        return Rejection(place, "unreadable_row", f"expected a JSON object, found {type(record).__name__}")
    if columns.prediction in record:
        return Rejection(place, "unreadable_row", f"it has the key '{columns.prediction}', as its prediction would")
    return record.get(columns.text)


def _strings(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """The values; bytes where they are not UTF-8, which Parquet files may hold."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _row(part: Part, place: int) -> Any:
    if part.is_lines:
        return part.table.column(LINE)[place].as_py()
    row: dict[str, Any] = {}
    for number, name in enumerate(part.table.column_names):  # of which a CSV file may have several alike
        row[name if name not in row else f"{name} ({number + 1})"] = _for_json(part.table.column(number)[place])
    return row


def _for_json(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        value = scalar.cast(pa.binary()).as_py()
    plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
