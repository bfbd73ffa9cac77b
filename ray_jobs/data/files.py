"""Reads CSV, Parquet and JSON Lines files, local or at any fsspec URL, into rows.

CSV and JSON Lines are read by the standard library rather than by a column store: those guess types from the first
block of a file (a label column of ``1, 2, n/a`` changes type half way, a text ``NA`` becomes null), and their errors
do not name the row.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import pyarrow.parquet as pq

from ray_jobs.data.rows import DataError, Rows

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; ``row_id`` None: the file has no ids. ``slices``: those to score by."""

    text: str
    label: str
    row_id: str | None = None
    slices: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns that a file must have."""
        return [self.text, self.label, *([self.row_id] if self.row_id else []), *self.slices]

    def rows(self, values: Sequence[Sequence[Any]], name: str) -> Rows:
        """The rows of the file ``name``, from the values of its columns in the order of ``names``."""
        texts, labels, *others = values
        ids = others.pop(0) if self.row_id else None
        slices = dict(zip(self.slices, others, strict=True))
        return Rows(texts=texts, labels=labels, ids=ids, parts=[(name, len(texts))], slices=slices)


def read_files(urls: Sequence[str], columns: Columns, field: str) -> tuple[Rows, tuple[str, ...] | None]:
    """All rows of ``urls``, in order, and the class names if Parquet files written by `datasets` carry them.

    ``field`` is the setting that listed the files, for messages. A path with ``*`` stands for all files that match,
    sorted. Raises DataError.
    """
    several, names = [], None
    for url in [match for pattern in urls for match in _matches(pattern, field)]:
        rows, found = _read_file(url, columns, field)
        if found is not None and names is not None and found != names:
            raise DataError(
                f"{redacted(url)}: its metadata name the classes {list(found)}, but the files before it "
                f"have {list(names)}: make them equal or set data.label_names and drop the metadata"
            )
        names = names or found
        several.append(rows)
    return Rows.concatenate(several), names


def redacted(url: str) -> str:
    """``url`` without password and query, which may hold a signature: for messages and records."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.sub(r'^[^/@]*@', '', rest.partition('?')[0])}"


@contextmanager
def reading(name: str, fix: str) -> Iterator[None]:
    """Turns any failure to read ``name`` into a DataError that ends with ``fix``."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: {fix}") from None
    except Exception as error:  # every fsspec backend and file format raises classes of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} cannot be read ({type(error).__name__}: {reason[:300]}): {fix}") from error


def _matches(url: str, field: str) -> list[str]:
    if "*" not in url:
        return [url]
    with reading(redacted(url), f"correct {field}"):
        filesystem, path = fsspec.core.url_to_fs(url)
        if filesystem.exists(path):
            return [url]
        found = sorted(filesystem.glob(path))
    if not found:
        raise DataError(f"{redacted(url)} matches no file: correct {field}")
    return [filesystem.unstrip_protocol(match) if "://" in url else match for match in found]


def _read_file(url: str, columns: Columns, field: str) -> tuple[Rows, tuple[str, ...] | None]:
    name = redacted(url)
    file_format = format_of(url, field)
    names = None
    with reading(name, f"correct {field}, or repair the file"), fsspec.open(url, "rb", compression="infer") as file:
        if file_format == "parquet":
            values, names = _read_parquet(file, columns, name)
        elif file_format == "jsonl":
            values = _read_jsonl(file, columns, name)
        else:
            values = _read_csv(file, columns, name, "\t" if file_format == "tsv" else ",")
    if not values[0]:
        raise DataError(f"{name} has no rows: correct {field}, or fill the file")
    return columns.rows(values, name), names


def format_of(url: str, field: str) -> str:
    """The format of a file by its ending: csv, tsv, parquet or jsonl. Raises DataError, which names ``field``."""
    path = url.partition("?")[0].lower() if "://" in url else url.lower()
    for suffix in _COMPRESSED:
        path = path.removesuffix(suffix)
    for suffix, file_format in _FORMATS.items():
        if path.endswith(suffix):
            return file_format
    raise DataError(
        f"{redacted(url)}: the format is told by the ending, expected one of {', '.join(_FORMATS)} "
        f"(each also with {', '.join(_COMPRESSED)}): rename the file or correct {field}"
    )


def require_columns(columns: Columns, found: Sequence[str], name: str) -> None:
    """DataError when ``name`` does not have each of ``columns`` exactly once among its columns ``found``."""
    settings = [("text_column", columns.text), ("label_column", columns.label), ("id_column", columns.row_id)]
    for setting, column in settings + [("slice_columns", column) for column in columns.slices]:
        if column is not None and column not in found:
            hint = ""
            if len(found) == 1 and re.search(r"[;\t|]", found[0]):
                hint = " (a single column: is the separator not a comma?)"
            raise DataError(
                f"{name} has no column '{column}'; found columns: {', '.join(found)}{hint}: set data.{setting}"
            )
        if column is not None and list(found).count(column) > 1:
            raise DataError(f"{name} has the column '{column}' {list(found).count(column)} times: rename the others")


def _read_csv(file: IO[bytes], columns: Columns, name: str, delimiter: str) -> list[list[Any]]:
    values: list[list[Any]] = [[] for _ in columns.names]
    records = csv_records(file, name, delimiter)
    _, header = next(records, (0, []))
    if not header:
        raise DataError(f"{name} is empty: expected a header line with the columns {', '.join(columns.names)}")
    require_columns(columns, header, name)
    wanted = [(header.index(column), into) for column, into in zip(columns.names, values, strict=True)]
    for row, (line, fields) in enumerate(records, start=1):
        if len(fields) != len(header):
            raise DataError(f"{name}, row {row} (ends at line {line}): {wrong_field_count(fields, header)}")
        for column, into in wanted:
            into.append(fields[column])
    return values


def wrong_field_count(fields: Sequence[str], header: Sequence[str]) -> str:
    """What is wrong with a CSV record that has more or fewer ``fields`` than the ``header``."""
    return f"{len(fields)} fields, but the header has {len(header)}: put quotes around texts that hold a separator"


def csv_records(file: IO[bytes], name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line it ends at, fields) of every record of a CSV file, the header first, its names stripped; no blank lines.

    Raises DataError for what is not CSV or not UTF-8.
    """
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    limit = csv.field_size_limit(sys.maxsize)  # the default refuses texts over 131,072 characters
    row = -1  # the header, so that rows are counted from 1
    try:
        for fields in reader:
            if not fields:
                continue
            row += 1
            yield reader.line_num, fields if row else [column.strip() for column in fields]
    except csv.Error as error:
        raise DataError(
            f"{name}, row {row + 1} (line {reader.line_num}): not valid CSV ({error}): inside a quoted "
            'text a quote is written twice ("")'
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, after row {max(row, 0)}: not UTF-8 ({error.reason} at byte 0x{error.object[error.start]:02x})"
            ": save the file as UTF-8"
        ) from None
    finally:
        csv.field_size_limit(limit)
        if not lines.closed:  # by a caller that did not want the rest
            lines.detach()


def _read_jsonl(file: IO[bytes], columns: Columns, name: str) -> list[list[Any]]:
    values: list[list[Any]] = [[] for _ in columns.names]
    found: dict[str, None] = {}
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            record = json.loads(text)
        except UnicodeDecodeError:
            raise DataError(f"{name}, line {number}: not UTF-8: save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {number}: not valid JSON ({error.msg}, column {error.colno}): write one object per line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"{name}, line {number}: expected an object, found {type(record).__name__}: write one "
                f"object with {', '.join(columns.names)} per line"
            )
        found.update(dict.fromkeys(record))
        # "\ud83d" alone is legal JSON but no character: half an emoji, cut off by somebody. Nothing after here
        # could write it as UTF-8.
        repair = "\\ud" in text.lower()
        for column, into in zip(columns.names, values, strict=True):
            value = record.get(column)
            into.append(_without_surrogates(value) if repair and isinstance(value, str) else value)
    if values[0]:
        require_columns(columns, list(found), name)
    return values


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_parquet(file: IO[bytes], columns: Columns, name: str) -> tuple[list[list[Any]], tuple[str, ...] | None]:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    require_columns(columns, schema.names, name)
    table = parquet.read(columns=columns.names)
    return [table.column(column).to_pylist() for column in columns.names], _class_names(schema.metadata, columns.label)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names of the ClassLabel feature that `datasets` writes into Parquet files, if there."""
    if not metadata or b"huggingface" not in metadata:
        return None
    feature = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if names else None
