"""The files that a batch job scores: found, told apart from changed ones, and how many rows they have."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import fsspec
import pyarrow.parquet as pq

from configs.exit_codes import Unreachable, UsageError
from ray_jobs.command import StorageUnavailable
from ray_jobs.data.files import csv_records, format_of, redacted
from ray_jobs.data.rows import DataError
from serve_app.mlflow_client import is_unreachable
from serve_app.refusals import storage_problem

_FIELD = "batch_score.input"
_SAMPLED_FILES = 16  # whose rows are counted; those of the others are estimated from the bytes
_SAMPLED_ROWS = 5000  # of a text file
_FIRST_LINES = 1000  # of a JSON Lines file, in one of which a key that is asked for must be


@dataclass(frozen=True)
class InputFile:
    """A file to score. ``stamp``: the store's sign of its content (ETag, or time of the last change)."""

    url: str
    format: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """For messages and records: without password or signature."""
        return redacted(self.url)


@dataclass(frozen=True)
class RowCount:
    """Rows of all files; not ``exact``: estimated from some of them."""

    rows: int
    exact: bool


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Tells a store that fails (StorageUnavailable) from a file that is missing or broken (DataError)."""
    try:
        yield
    except (UsageError, Unreachable):
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: correct {_FIELD}") from None
    except Exception as error:  # every fsspec backend and file format raises classes of its own
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        # Of the library that reads a format come OSErrors without a number.
        gone = isinstance(error, OSError) and (error.errno is not None or isinstance(error, PermissionError))
        if gone or is_unreachable(error) or isinstance(error, ConnectionError | TimeoutError):
            raise StorageUnavailable(f"{name} cannot be reached: {storage_problem(name, error)}") from error
        raise DataError(f"{name} cannot be read ({type(error).__name__}: {reason}): repair it, or correct "
                        f"{_FIELD}") from error  # fmt: skip


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. Raises as ``reading``."""
    with reading(file.name), fsspec.open(file.url, "rb", compression="infer") as stream:
        yield stream


def find_files(urls: Sequence[str]) -> list[InputFile]:
    """The files that ``urls`` name, those of a folder or pattern sorted, each once.

    In folders only files with a known ending count, and nothing whose name begins with a dot or an underscore. Raises
    DataError, StorageUnavailable.
    """
    found = list({file.url: file for url in urls for file in _find(url)}.values())
    formats = {file.format: file.name for file in found}
    if len(formats) > 1:
        shown = ", ".join(f"{name} ({kind})" for kind, name in sorted(formats.items()))
        raise DataError(f"{_FIELD} has files of several formats: {shown}; score each format with a job of its own")
    return found


def _find(url: str) -> list[InputFile]:
    name = redacted(url)
    with reading(name):
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        if "*" in path and not filesystem.exists(path):
            paths, fix = sorted(filesystem.glob(path, detail=True).items()), "matches no file"
        elif filesystem.isdir(path):
            paths, fix = _in_folder(filesystem, path), "has no file with a known ending (.parquet, .csv, .jsonl, ...)"
        else:
            return [_described(url, filesystem.info(path))]
    files = [entry for entry in paths if entry[1]["type"] == "file"]
    if not files:
        raise DataError(f"{name} {fix}: correct {_FIELD}")
    remote = "://" in url
    return [_described(filesystem.unstrip_protocol(at) if remote else at, info) for at, info in files]


def _in_folder(filesystem: Any, folder: str) -> list[tuple[str, dict[str, Any]]]:
    kept = []
    for path, info in sorted(filesystem.find(folder, detail=True).items()):
        inside = path.removeprefix(folder.rstrip("/")).strip("/").split("/")
        hidden = any(part.startswith(("_", ".")) for part in inside)
        with contextlib.suppress(DataError):  # an ending that is not ours
            if not hidden and format_of(path, _FIELD):
                kept.append((path, info))
    return kept


def _described(url: str, info: dict[str, Any]) -> InputFile:
    stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return InputFile(url, format_of(url, _FIELD), int(info.get("size") or 0), str(stamp))


def check_columns(found: Sequence[str], text_column: str, prediction_name: str, name: str) -> None:
    """DataError when the columns of the file ``name`` have no text column, or names that the predictions take."""
    if text_column not in found:
        near = difflib.get_close_matches(text_column, found, n=1)
        hint = f"did you mean '{near[0]}'? It has" if near else "it has"
        raise DataError(f"{name} has no column '{text_column}'; {hint}: {', '.join(found)}; set --text-column "
                        "(batch_score.text_column)")  # fmt: skip
    if list(found).count(text_column) > 1:
        raise DataError(f"{name} has the column '{text_column}' more than once: rename the others")
    taken = [column for column in found if column == prediction_name or column.startswith(f"{prediction_name}_")]
    if taken:
        raise DataError(f"{name} has a column '{taken[0]}', as the predictions would: set "
                        "batch_score.prediction_name to another name")  # fmt: skip


def column_names(file: InputFile) -> list[str]:
    """The file's columns; of JSON Lines the keys of its first record, none without rows. Raises as ``reading``."""
    with opened(file) as stream:
        if file.format == "parquet":
            return list(pq.read_schema(stream).names)
        if file.format == "jsonl":
            return _first_keys(stream)
        return next(csv_records(stream, file.name, delimiter(file)), (0, []))[1]


def delimiter(file: InputFile) -> str:
    """What separates the fields of a CSV or TSV file."""
    return "\t" if file.format == "tsv" else ","


def _first_keys(stream: IO[bytes]) -> list[str]:
    """The keys of the first records; lines that are none are rejected one by one, later."""
    keys: dict[str, None] = {}
    for line in islice(stream, _FIRST_LINES):
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            keys.update(dict.fromkeys(record))
    return list(keys)


def count_rows(files: Sequence[InputFile]) -> RowCount:
    """Rows of the ``files``: Parquet files say it, of text files the beginning is read. Raises as ``reading``."""
    step = max(1, len(files) // _SAMPLED_FILES)
    sample = list(files)[::step][:_SAMPLED_FILES]
    counted = [_count(file) for file in sample]
    rows, size = sum(count.rows for count in counted), sum(file.size for file in sample)
    if len(sample) == len(files):
        return RowCount(rows, all(count.exact for count in counted))
    return RowCount(round(rows / max(1, size) * sum(file.size for file in files)), exact=False)


def _count(file: InputFile) -> RowCount:
    with reading(file.name), fsspec.open(file.url, "rb") as raw:
        if file.format == "parquet":
            return RowCount(pq.read_metadata(raw).num_rows, exact=True)
        rows, ended = _rows_at_the_beginning(raw, file)
        if ended:
            return RowCount(rows, exact=True)
        return RowCount(max(rows, round(rows / max(1, raw.tell()) * file.size)), exact=False)


def _rows_at_the_beginning(raw: IO[bytes], file: InputFile) -> tuple[int, bool]:
    """Rows at the beginning, at most _SAMPLED_ROWS, and whether these are all."""
    compression = fsspec.utils.infer_compression(file.url)
    unpacked = fsspec.compression.compr[compression](raw, mode="r") if compression else raw
    if file.format == "jsonl":
        records: Iterator[object] = (line for line in unpacked if line.strip())
    else:
        records = csv_records(unpacked, file.name, delimiter(file))
        next(records, None)
    rows = sum(1 for _ in zip(range(_SAMPLED_ROWS), records, strict=False))
    return rows, next(records, None) is None
