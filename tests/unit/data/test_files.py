from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.data.files import Columns, read_files, redacted
from ray_jobs.data.rows import DataError, Rows
from tests.unit.data.builders import write_csv, write_jsonl

COLUMNS = Columns("text", "label")


def read(*urls: str | Path, columns: Columns = COLUMNS) -> Rows:
    return read_files([str(url) for url in urls], columns, "data.train")[0]


@pytest.fixture
def memory() -> Iterator[str]:
    """An fsspec URL that is no local path."""
    yield "memory://trialgate-tests"
    fsspec.filesystem("memory").rm("/trialgate-tests", recursive=True)


def test_csv_with_bom_quotes_newlines_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_bytes(
        b'\xef\xbb\xbftext,label,stars\r\n"She said ""great"", twice",pos,5\r\n"two\nlines, one text",neg,n/a\r\n'
        b"NA,pos,1\r\n\r\n  caf\xc3\xa9 ,neg,\r\n"
    )
    rows = read(path)
    assert rows.texts == ['She said "great", twice', "two\nlines, one text", "NA", "  café "]
    assert rows.labels == ["pos", "neg", "pos", "neg"]
    assert rows.where(2) == f"{path}, row 3"


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["unused"], ["unused"], review=["fine"], verdict=["1"], number=["n7"])
    rows = read(path, columns=Columns("review", "verdict", "number"))
    assert (rows.texts, rows.labels, rows.ids) == (["fine"], ["1"], ["n7"])


def test_long_text_in_csv(tmp_path: Path) -> None:
    text = "word " * 100_000  # the csv module refuses 131,072 characters unless told otherwise
    assert read(write_csv(tmp_path / "long.csv", [text], ["pos"])).texts == [text]


def test_tsv_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\nfine, "really"\tpos\n')
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write("text,label\nbad,neg\n")
    rows = read(tmp_path / "a.tsv", tmp_path / "b.csv.gz")
    assert rows.texts == ['fine, "really"', "bad"]
    assert rows.where(1) == f"{tmp_path / 'b.csv.gz'}, row 1"


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "caf\xc3\xa9", "label": 1}\n\n'
        b'{"label": 0.0, "text": "half an emoji \\ud83d", "more": []}\n'
        b'{"label": 1, "text": "a whole one \\ud83d\\ude00"}'
    )
    rows = read(path)
    assert rows.texts == ["café", "half an emoji \ufffd", "a whole one \U0001f600"]
    assert rows.labels == [1, 0.0, 1]


def test_parquet_of_several_row_groups_and_odd_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "label": pa.array([0, 1, 0, 1], pa.int8()),
            "more": [[1], [], [2], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    rows = read(tmp_path / "a.parquet")
    assert (rows.texts, rows.labels) == (["a", "b", "a", None], [0, 1, 0, 1])


def test_class_names_that_datasets_wrote_into_parquet(tmp_path: Path) -> None:
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "b.parquet")
    paths = [str(tmp_path / name) for name in ("b.parquet", "a.parquet")]
    assert read_files(paths, COLUMNS, "data.train")[1] == ("bad", "good")


def test_fsspec_url_and_pattern(memory: str) -> None:
    for name, text in (("2", "second"), ("1", "first")):
        with fsspec.open(f"{memory}/part-{name}.csv", "w") as file:
            file.write(f"text,label\n{text},pos\n")
    assert read(f"{memory}/part-1.csv").texts == ["first"]
    rows = read(f"{memory}/part-*.csv")
    assert rows.texts == ["first", "second"]
    assert "part-2.csv, row 1" in rows.where(1)
    with pytest.raises(DataError, match=r"part-9\.csv does not exist: correct data\.train"):
        read(f"{memory}/part-9.csv")
    with pytest.raises(DataError, match=r"none-\*\.csv matches no file: correct data\.train"):
        read(f"{memory}/none-*.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"review,label\nx,1\n", r"a\.csv has no column 'text'; found columns: review, label: .*text_column"),
        ("a.csv", b"text,stars\nx,1\n", r"no column 'label'; found columns: text, stars: set data\.label_column"),
        ("a.csv", b"text;label\nx;1\n", r"found columns: text;label \(a single column: is the separator"),
        ("a.csv", b"text,text,label\nx,y,1\n", r"the column 'text' 2 times"),
        ("a.csv", b"", r"a\.csv is empty: expected a header line"),
        ("a.csv", b"text,label\n", r"a\.csv has no rows"),
        ("a.csv", b"text,label\nfine,1\nnot, quoted,1\n", r"row 2 \(ends at line 3\): 3 fields, but the header has 2"),
        ("a.csv", b'text,label\n"never closed,1\n', r"row 1 \(line 2\): not valid CSV"),
        ("a.csv", b'text,label\nok,0\n"a "quote" inside",1\n', r"row 2 \(line 3\): not valid CSV.*twice"),
        ("a.csv", "text,label\nschön,1\n".encode("latin-1"), r"not UTF-8 .*0xf6.*: save the file as UTF-8"),
        ("a.csv", "text,label\nschön,1\n".encode("utf-16"), r"not UTF-8"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": }\n', r"line 2: not valid JSON \(Expecting value"),
        ("a.jsonl", b'["a", 1]\n', r"line 1: expected an object, found list"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xff"}\n', r"line 2: not UTF-8"),
        ("a.jsonl", b'{"body": "a", "label": 1}\n', r"no column 'text'; found columns: body, label"),
        ("a.jsonl", b"\n", r"a\.jsonl has no rows"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet cannot be read \(ArrowInvalid: .*: correct data\.train"),
        ("a.txt", b"text", r"the format is told by the ending, expected one of \.csv"),
        ("a.csv.gz", b"not gzip", r"a\.csv\.gz cannot be read \(BadGzipFile"),
    ],
)
def test_unreadable(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_parquet_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text'; found columns: content, label"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/nowhere/at/all.csv", r"/nowhere/at/all\.csv does not exist: correct data\.train"),
        ("nosuchscheme://bucket/a.csv", r"cannot be read \(ValueError: Protocol not known: nosuchscheme"),
    ],
)
def test_missing(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(url)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(IsADirectoryError"):
        read(tmp_path / "a.csv")


def test_secrets_of_a_url_are_not_shown() -> None:
    assert redacted("s3://key:secret@bucket/a.csv") == "s3://bucket/a.csv"
    assert redacted("https://host/a.csv?X-Signature=secret") == "https://host/a.csv"
    assert redacted("/data/a?b@c.csv") == "/data/a?b@c.csv"
    with pytest.raises(DataError) as caught:
        read("nosuchscheme://key:secret@bucket/a.csv")
    assert "secret" not in str(caught.value)


def test_where_over_several_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 0}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": "c", "label": 0}])
    rows = read(one, two)
    assert [rows.where(i) for i in range(3)] == [f"{one}, row 1", f"{one}, row 2", f"{two}, row 1"]
    left = rows.replace(["C", "A"], [2, 0])
    assert [left.where(i) for i in range(2)] == [f"{two}, row 1", f"{one}, row 1"]
    assert [left.replace(["A"], [1]).where(0)] == [f"{one}, row 1"]
