"""Finding files, and how many rows they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.batch.inputs import InputFile, RowCount, column_names, count_rows, find_files, reading
from ray_jobs.command import StorageUnavailable
from ray_jobs.data.rows import DataError
from tests.unit.batch.files import ENDINGS, write

ROWS = [{"id": number, "text": "a text"} for number in range(30)]


def names(*urls: str) -> list[str]:
    return [Path(file.url).name for file in find_files(urls)]


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv.gz", "sub/c.csv", "_SUCCESS", "_rejected/x.csv", ".hidden.csv", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n")
    assert names(str(tmp_path)) == ["a.csv.gz", "b.csv", "c.csv"]
    assert names(f"{tmp_path}/*.csv") == [".hidden.csv", "b.csv"]
    assert names(f"{tmp_path}/b.csv", str(tmp_path)) == ["b.csv", "a.csv.gz", "c.csv"]


def test_what_cannot_be_found_or_used_says_why(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.parquet", ROWS)
    (tmp_path / "empty").mkdir()
    for url, message in {
        f"{tmp_path}/none.csv": "none.csv does not exist: correct batch_score.input",
        f"{tmp_path}/*.jsonl": "matches no file",
        f"{tmp_path}/empty": "has no file with a known ending",
        str(tmp_path): r"files of several formats: .*a.csv \(csv\), .*b.parquet \(parquet\)",
        f"{tmp_path}/b.parquet.txt": "does not exist",
        "nonsense://bucket/a.csv": "nonsense",
    }.items():
        with pytest.raises(DataError, match=message):
            find_files([url])


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    before = write(tmp_path / "a.csv", ROWS)
    assert find_files([before.url]) == [before]
    assert write(tmp_path / "a.csv", ROWS[1:]) != before


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_and_columns_of_small_files_are_exact(ending: str, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}{ending}", ROWS) for name in "ab"]
    assert count_rows(files) == RowCount(60, exact=True)
    assert column_names(files[0]) == ["id", "text"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".jsonl.gz"])
def test_rows_of_large_text_files_are_estimated(ending: str, tmp_path: Path) -> None:
    rows = [
        {"id": number * 7919 % 100_003, "text": f"{number * 104_729 % 1_000_003} a text"} for number in range(50_000)
    ]
    found = count_rows([write(tmp_path / f"in{ending}", rows)])
    assert not found.exact
    assert 40_000 < found.rows < 60_000


def test_rows_of_many_files_are_estimated_from_some(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number:02d}.parquet", ROWS) for number in range(40)]
    assert count_rows(files) == RowCount(40 * 30, exact=False)


def test_keys_of_json_lines_are_those_of_any_early_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('not JSON\n[1]\n{"id": 1}\n{"id": 2, "text": "good"}\n', encoding="utf-8")
    assert column_names(find_files([str(path)])[0]) == ["id", "text"]


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).touch()
        assert column_names(InputFile(str(tmp_path / name), name[2:], 0, "")) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("x"), DataError),
        (PermissionError("Forbidden"), StorageUnavailable),
        (ConnectionRefusedError(111, "refused"), StorageUnavailable),
        (TimeoutError(), StorageUnavailable),
        (OSError(5, "Input/output error"), StorageUnavailable),
        (OSError("Corrupt snappy compressed data"), DataError),
        (ValueError("not a parquet file"), DataError),
    ],
)
def test_a_store_that_fails_is_told_from_a_broken_file(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="a.csv"), reading("a.csv"):
        raise error
