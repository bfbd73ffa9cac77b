"""Parts: the consecutive rows of one file that are scored, written and, once written, never computed again.

A file is read as a stream, so memory does not depend on its size. Where a part ends depends only on where it begins and
on the rows in it, so that a job which goes on cuts its files as it did before.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_jobs.batch.inputs import InputFile, check_columns, delimiter, opened
from ray_jobs.data.files import csv_records, wrong_field_count
from ray_jobs.data.rows import DataError

PART_BYTES = 16_000_000  # of text, of which a part has at most this and one row more
LINE = "\n"  # the one column of a part of JSON Lines; no file has a column of this name
_OWN = b"trialgate.part"  # in the metadata of a table that travels
_ROWS_AT_ONCE = 256  # that are read; fewer cost more, more hold more memory where rows are long
Row = TypeVar("Row")


@dataclass(frozen=True)
class Part:
    """``first_row``: number of its first row in the file, from 1. ``table``: the rows with all columns; CSV fields are
    text, and of JSON Lines there is the column LINE. ``unreadable``: place in the part, and what is wrong there."""

    first_row: int
    table: pa.Table
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def is_lines(self) -> bool:
        """Whether it is of JSON Lines."""
        return self.table.column_names == [LINE]

    def __len__(self) -> int:
        return self.table.num_rows

    def to_bytes(self) -> bytes:
        """The part as it travels to a worker."""
        own = json.dumps([self.first_row, list(self.unreadable.items())]).encode()
        table = self.table.replace_schema_metadata({**(self.table.schema.metadata or {}), _OWN: own})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes | pa.Buffer) -> Part:
        """What ``to_bytes`` gave."""
        table = pa.ipc.open_stream(content).read_all()
        metadata = dict(table.schema.metadata)
        first_row, unreadable = json.loads(metadata.pop(_OWN))
        return cls(first_row, table.replace_schema_metadata(metadata), dict(unreadable))


@dataclass(frozen=True)
class Columns:
    """Names: of the text's column, and what those of the predictions begin with."""

    text: str
    prediction: str


@dataclass(frozen=True)
class _Batch:
    table: pa.Table
    sizes: np.ndarray  # of each row's text (or line), characters or bytes
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return self.table.num_rows

    def cut(self, start: int, stop: int) -> _Batch:
        unreadable = {place - start: why for place, why in self.unreadable.items() if start <= place < stop}
        return _Batch(self.table.slice(start, stop - start), self.sizes[start:stop], unreadable)


def read_parts(file: InputFile, columns: Columns, rows_per_part: int, finished: Mapping[int, int]) -> Iterator[Part]:
    """The parts of ``file`` that are not ``finished`` (first row -> rows), in order. Raises as ``inputs.reading``."""
    start = first_missing_row(finished)
    with opened(file) as stream:
        for part in _cut(_read(stream, file, columns, start), start, rows_per_part):
            if part.first_row not in finished:
                yield part


def first_missing_row(finished: Mapping[int, int]) -> int:
    """The first row of a file that is in no ``finished`` part (first row -> rows)."""
    row = 1
    while row in finished:
        row += finished[row]
    return row


def _cut(batches: Iterator[_Batch], first_row: int, rows_per_part: int) -> Iterator[Part]:
    held: list[_Batch] = []
    rows, size = 0, 0
    for batch in batches:
        while len(batch):
            sizes = np.cumsum(batch.sizes[: rows_per_part - rows])
            taken = min(len(sizes), int(np.searchsorted(sizes, PART_BYTES - size)) + 1)
            held.append(batch.cut(0, taken))
            batch = batch.cut(taken, len(batch))
            rows, size = rows + taken, size + int(sizes[taken - 1])
            if rows == rows_per_part or size >= PART_BYTES:
                yield _joined(held, first_row)
                first_row, held, rows, size = first_row + rows, [], 0, 0
    if held:
        yield _joined(held, first_row)


def _joined(batches: list[_Batch], first_row: int) -> Part:
    begins = itertools.accumulate((len(batch) for batch in batches), initial=0)
    unreadable = {
        begin + place: why
        for begin, batch in zip(begins, batches, strict=False)
        for place, why in batch.unreadable.items()
    }
    return Part(first_row, pa.concat_tables([batch.table for batch in batches]), unreadable)


def _read(stream: IO[bytes], file: InputFile, columns: Columns, start: int) -> Iterator[_Batch]:
    """The rows from number ``start`` on."""
    if file.format == "parquet":
        return _read_parquet(stream, file, columns, start)
    if file.format == "jsonl":
        return _read_jsonl(stream, start)
    return _read_csv(stream, file, columns, start)


def _read_parquet(stream: IO[bytes], file: InputFile, columns: Columns, start: int) -> Iterator[_Batch]:
    # With a buffer the columns of a row group are streamed, however large it is.
    parquet = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    check_columns(parquet.schema_arrow.names, columns.text, columns.prediction, file.name)
    kind = parquet.schema_arrow.field(columns.text).type
    if not _is_text(kind):
        raise DataError(f"{file.name}: the column '{columns.text}' is {kind}, expected text: set "
                        "batch_score.text_column (--text-column)")  # fmt: skip
    ends = list(itertools.accumulate(parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)))
    groups = [number for number, end in enumerate(ends) if end >= start]
    if not groups:
        return
    skipped = start - 1 - (ends[groups[0] - 1] if groups[0] else 0)
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups):
        left = batch.slice(min(skipped, len(batch)))
        skipped -= len(batch) - len(left)
        if len(left):
            table = pa.Table.from_batches([left])
            lengths = pc.fill_null(pc.binary_length(_plain(table.column(columns.text))), 0)
            yield _Batch(table, lengths.to_numpy(), {})


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string()) if not pa.types.is_large_string(column.type) else column


def _read_csv(stream: IO[bytes], file: InputFile, columns: Columns, start: int) -> Iterator[_Batch]:
    records = csv_records(stream, file.name, delimiter(file))
    _, header = next(records, (0, []))
    if not header:
        raise DataError(f"{file.name} is empty: expected a header line with the column '{columns.text}'")
    check_columns(header, columns.text, columns.prediction, file.name)
    schema, text = pa.schema([(name, pa.string()) for name in header]), header.index(columns.text)
    for rows in _several(fields for _, fields in itertools.islice(records, start - 1, None)):
        odd = {place: wrong_field_count(row, header) for place, row in enumerate(rows) if len(row) != len(header)}
        whole = [(row + [""] * len(header))[: len(header)] for row in rows]  # of an odd one, what there is
        values = [pa.array(column, pa.string()) for column in zip(*whole, strict=True)]
        yield _Batch(pa.Table.from_arrays(values, schema=schema), np.array([len(row[text]) for row in whole]), odd)


def _read_jsonl(stream: IO[bytes], start: int) -> Iterator[_Batch]:
    lines = (line.strip().removeprefix(codecs.BOM_UTF8) for line in stream if line.strip())
    for rows in _several(itertools.islice(lines, start - 1, None)):
        texts, unreadable = [], {}
        for place, line in enumerate(rows):
            try:
                texts.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                texts.append(line.decode("utf-8", "replace"))
                unreadable[place] = f"not UTF-8 ({error.reason} at byte {error.start} of the line)"
        yield _Batch(pa.table({LINE: pa.array(texts, pa.string())}), np.array([len(line) for line in rows]), unreadable)


def _several(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while several := list(itertools.islice(iterator, _ROWS_AT_ONCE)):
        yield several
