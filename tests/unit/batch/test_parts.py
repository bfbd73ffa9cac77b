"""Where parts begin and end, and that a job which goes on cuts its files as it did before."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pytest

from ray_jobs.batch import parts
from ray_jobs.batch.inputs import InputFile
from ray_jobs.batch.parts import LINE, Part, read_parts
from ray_jobs.data.rows import DataError
from tests.unit.batch.files import COLUMNS, ENDINGS, write

ROWS = [{"id": str(number), "text": "x" * (1 + number % 5)} for number in range(600)]


def ids(part: Part) -> list[str]:
    if part.is_lines:
        return [json.loads(line)["id"] for line in part.table.column(LINE).to_pylist()]
    return list(part.table.column("id").to_pylist())


def read(file: InputFile, rows_per_part: int = 100, finished: dict[int, int] | None = None) -> list[Part]:
    return list(read_parts(file, COLUMNS, rows_per_part, finished or {}))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows_per_part", [1, 7, 256, 300, 1000])
def test_every_row_is_in_one_part_in_order(ending: str, rows_per_part: int, tmp_path: Path) -> None:
    found = read(write(tmp_path / f"in{ending}", ROWS), rows_per_part)
    assert [row for part in found for row in ids(part)] == [row["id"] for row in ROWS]
    assert [part.first_row for part in found] == list(range(1, 601, rows_per_part))
    assert not any(part.unreadable for part in found)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("gone", [{0}, {5}, {0, 1, 2}, {0, 3}, {1, 2, 4}, {0, 1, 2, 3, 4}, set(range(6))])
def test_what_is_finished_is_left_out_and_the_rest_is_cut_as_before(
    ending: str, gone: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 250)  # of text or line: parts end at it and at 100 rows
    file = write(tmp_path / f"in{ending}", ROWS)
    first = read(file)
    assert len(first) > 6
    finished = {part.first_row: len(part) for number, part in enumerate(first) if number in gone}
    again = read(file, finished=finished)
    expected = [part for part in first if part.first_row not in finished]
    assert [(part.first_row, ids(part)) for part in again] == [(part.first_row, ids(part)) for part in expected]


def test_a_part_ends_with_the_row_that_fills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 10)
    sizes = [3, 3, 3, 3, 30, 1, 9, 1]
    found = read(write(tmp_path / "in.parquet", [{"id": str(n), "text": "x" * n} for n in sizes]))
    assert [list(map(int, ids(part))) for part in found] == [[3, 3, 3, 3], [30], [1, 9], [1]]


def test_a_part_travels_whole(tmp_path: Path) -> None:
    part = read(write(tmp_path / "in.parquet", ROWS[:20]), 7)[1]
    broken = Part(part.first_row, part.table, {3: "why"})
    again = Part.from_bytes(broken.to_bytes())
    assert (again.first_row, again.unreadable) == (8, {3: "why"})
    assert again.table.equals(part.table, check_metadata=True)
    assert len(broken.to_bytes()) < 3000, "a slice of a table, and not the table"


def test_rows_that_cannot_be_read_are_named_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,id\na,0\nb\nc,2,3\n\nd,4\n")
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "\xff"}\r\n{"text": "c"}')
    odd = read(write_nothing(tmp_path / "in.csv"), 2)
    assert [part.unreadable for part in odd] == [
        {1: "1 fields, but the header has 2: put quotes around texts that hold a separator"},
        {0: "3 fields, but the header has 2: put quotes around texts that hold a separator"},
    ]
    (lines,) = read(write_nothing(tmp_path / "in.jsonl"))
    assert lines.unreadable == {1: "not UTF-8 (invalid start byte at byte 10 of the line)"}
    assert lines.table.column(LINE).to_pylist()[::2] == ['{"text": "a"}', '{"text": "c"}']


def write_nothing(path: Path) -> InputFile:
    return InputFile(str(path), path.suffix[1:], path.stat().st_size, "")


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.parquet", ROWS[:3])
    Path(broken.url).write_bytes(b"PAR1 no parquet PAR1")
    numbers = write(tmp_path / "numbers.parquet", [{"text": 1}])
    other = write(tmp_path / "other.csv", [{"texts": "a", "n": "1"}])
    taken = write(tmp_path / "taken.csv", [{"text": "a", "prediction_label": "1"}])
    quoted = write(tmp_path / "quoted.csv", [{"text": "a"}])
    Path(quoted.url).write_text('text\n"a"b\n')
    for file, message in {
        broken: r"broken.parquet cannot be read",
        numbers: r"the column 'text' is int64, expected text",
        other: r"no column 'text'; did you mean 'texts'\? It has: texts, n; set --text-column",
        taken: r"has a column 'prediction_label', as the predictions would: set batch_score.prediction_name",
        quoted: r"quoted.csv, row 1 \(line 2\): not valid CSV",
    }.items():
        with pytest.raises(DataError, match=message):
            read(file)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_file(ending: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"in{ending}", [{"id": "1", "text": "x" * 1000}] * 20_000)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_parts(file, COLUMNS, 100, {})]
    assert len(held) == 200
    assert max(held) < 3_000_000, "of 20 MB of text"


def test_a_file_is_not_read_ahead(tmp_path: Path) -> None:
    """The first part is there before a broken row after it is met."""
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "fine\n" * 300 + '"a"b\n')
    stream = read_parts(write_nothing(path), COLUMNS, 100, {})
    assert [part.first_row for part in itertools.islice(stream, 2)] == [1, 101]
    with pytest.raises(DataError, match="row 301"):
        list(stream)
