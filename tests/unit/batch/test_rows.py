"""Which rows are scored, which are not and why, and how both are written."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.batch.parts import LINE, Part
from ray_jobs.batch.predictions import Predictions, render
from ray_jobs.batch.rows import Text, rejected_lines, texts_of
from tests.unit.batch.files import COLUMNS

LABELS = ("negative", "positive")


def lines(*texts: str) -> Part:
    return Part(1, pa.table({LINE: list(texts)}))


def found(part: Part, truncate: bool = True) -> list[str]:
    """For every row its text, or the reason why it has none."""
    texts, rejected = texts_of(part, COLUMNS, max_chars=10, truncate=truncate)
    by_place: dict[int, str] = {text.place: text.text for text in texts}
    by_place |= {row.place: row.reason for row in rejected}
    return [by_place[place] for place in range(len(part))]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "good"}', "good"),
        ('{"text": "gut \\u00e9\\ud83d\\ude00"}', "gut é😀"),
        ('{"text": "\\ud83d"}', "not_text"),
        ('{"text": "\\u200b\\n "}', "empty_text"),
        ('{"text": ""}', "empty_text"),
        ('{"text": null}', "missing_text"),
        ("{}", "missing_text"),
        ('{"text": ["a"]}', "not_text"),
        ('{"text": 1}', "not_text"),
        ('["text"]', "unreadable_row"),
        ('{"text": "a"', "unreadable_row"),
        ("[" * 100_000, "unreadable_row"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "unreadable_row"),
        ('{"text": "a", "prediction": 1}', "unreadable_row"),
        ('{"text": "0123456789 and more"}', "0123456789"),
    ],
)
def test_records(line: str, expected: str) -> None:
    assert found(lines(line, '{"text": "next"}')) == [expected, "next"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_columns(kind: pa.DataType) -> None:
    part = Part(1, pa.table({"text": pa.array(["a", None, " ", "0123456789+"], pa.string()).cast(kind)}))
    assert found(part) == ["a", "missing_text", "empty_text", "0123456789"]
    assert found(part, truncate=False) == ["a", "missing_text", "empty_text", "text_too_long"]
    texts, _ = texts_of(part, COLUMNS, max_chars=10, truncate=True)
    assert texts[-1] == Text(3, "0123456789", cut=True)


def test_a_column_that_is_not_utf8_is_told_by_row() -> None:
    broken = pa.array([b"fine", b"\xff", None], pa.binary()).view(pa.string())
    assert found(Part(1, pa.table({"text": broken}))) == ["fine", "unreadable_row", "missing_text"]


def test_a_rejected_row_is_named_and_kept() -> None:
    values: dict[str, list[Any]] = {"text": ["a", " "], "n": [1.5, float("nan")], "when": [None, b"\x00"]}
    part = Part(41, pa.table(values), {0: "two fields"})
    _, rejected = texts_of(part, COLUMNS, max_chars=10, truncate=True)
    first, second = map(json.loads, rejected_lines(part, rejected[::-1], "s3://bucket/a.parquet").splitlines())
    assert first == {
        "file": "s3://bucket/a.parquet",
        "row": 41,
        "reason": "unreadable_row",
        "message": "two fields",
        "input": {"text": "a", "n": 1.5, "when": None},
    }
    assert (second["row"], second["reason"]) == (42, "empty_text")
    assert second["input"] == {"text": " ", "n": "nan", "when": "b'\\x00'"}


def predictions(*places: int) -> Predictions:
    values = np.array([[0.25, 0.75], [0.875, 0.125]], dtype=np.float32)[: len(places)]
    return Predictions(places, LABELS, values, np.array([False, True])[: len(places)], "3")


def test_a_rejected_row_keeps_columns_of_the_same_name_apart() -> None:
    part = Part(1, pa.Table.from_arrays([pa.array([""]), pa.array(["a"]), pa.array(["b"])], names=["text", "", ""]))
    _, rejected = texts_of(part, COLUMNS, max_chars=10, truncate=True)
    (line,) = rejected_lines(part, rejected, "a.csv").splitlines()
    assert json.loads(line)["input"] == {"text": "", "": "a", " (3)": "b"}


def test_csv_keeps_every_field_as_it_was() -> None:
    rows = [{"n": "01", "text": 'a "quoted",\r\ntext'}, {"n": "", "text": "left out"}, {"n": "NA", "text": " é\t"}]
    content = render(Part(1, pa.Table.from_pylist(rows)), predictions(0, 2), "csv", "prediction").decode()
    assert list(csv.DictReader(io.StringIO(content, newline=""), strict=True)) == [
        {**row, "prediction_label": label, "prediction_score": score, "prediction_probability_negative": negative,
         "prediction_probability_positive": positive, "prediction_truncated": cut, "prediction_model_version": "3"}
        for row, label, score, negative, positive, cut in (
            (rows[0], "positive", "0.75", "0.25", "0.75", "false"),
            (rows[2], "negative", "0.875", "0.875", "0.125", "true"),
        )
    ]  # fmt: skip
    tabs = render(Part(1, pa.Table.from_pylist(rows)), predictions(0), "tsv", "p").decode()
    assert next(csv.reader(io.StringIO(tabs), delimiter="\t"))[:3] == ["n", "text", "p_label"]


def test_json_lines_keep_every_record_as_it_was() -> None:
    records = ['{"text":"a","n":1.10 , "big": 123456789012345678901234567890}', "[]", '{"a": {}, "text": "b" }']
    written = render(lines(*records), predictions(0, 2), "jsonl", "prediction").decode().splitlines()
    assert [line.startswith(record[:-1]) for line, record in zip(written, records[::2], strict=True)] == [True, True]
    assert [json.loads(line)["prediction"] for line in written] == [
        {"label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}, "truncated": False,
         "model_version": "3"},
        {"label": "negative", "score": 0.875, "probabilities": {"negative": 0.875, "positive": 0.125},
         "truncated": True, "model_version": "3"},
    ]  # fmt: skip


def test_parquet_keeps_types_and_metadata_but_not_those_of_datasets() -> None:
    schema = pa.schema([("n", pa.decimal128(5, 2)), ("text", pa.large_string())], {"huggingface": "{}", "mine": "1"})
    part = Part(1, pa.table({"n": pa.array([None, None]).cast(schema.field("n").type), "text": ["a", "b"]}, schema))
    for places in ((0, 1), ()):
        table = pq.read_table(io.BytesIO(render(part, predictions(*places), "parquet", "prediction")))
        assert table.num_rows == len(places)
        assert table.schema.names[2:] == [f"prediction_{name}" for name in (
            "label", "score", "probability_negative", "probability_positive", "truncated", "model_version"
        )]  # fmt: skip
        assert table.schema.types[:3] == [pa.decimal128(5, 2), pa.large_string(), pa.string()]
        assert table.schema.metadata == {b"mine": b"1"}
