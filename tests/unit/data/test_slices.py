"""Slice columns: from a file's columns to the frozen test split, with every text keeping its values."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.data import DataConfig
from ray_jobs.data.generator import TEST_START, TOPICS, class_names, generate, topics
from ray_jobs.data.prepare import Dataset, prepare
from ray_jobs.data.rows import DataError
from tests.unit.data.builders import files, reviews, write_csv, write_jsonl

TEXTS, LABELS = reviews(200)


def digests(dataset: Dataset) -> list[str]:
    return [dataset.train.digest, dataset.validation.digest, dataset.test.digest]


def test_every_test_text_keeps_its_values_through_cleaning_duplicates_and_sampling(tmp_path: Path) -> None:
    texts = [f"  {text}\x00" for text in TEXTS]
    texts, labels = (
        ["", *texts, *TEXTS[:50], "both 0", "both 0"],
        ["negative", *LABELS, *LABELS[:50], *sorted(set(LABELS))],
    )
    path = write_csv(tmp_path / "a.csv", texts, labels, digit=[text.strip(" \x00")[-1:] for text in texts])
    settings: dict[str, Any] = {"empty_texts": "drop", "test_fraction": 0.4, "max_test_texts": 30}
    dataset = prepare(files(path, slice_columns=["digit"], **settings))
    assert len(dataset.test) == 30
    assert dataset.test.slices == {"digit": [text[-1] for text in dataset.test.texts]}
    assert dataset.train.slices == dataset.validation.slices == {}
    counts = dataset.report.test_slices["digit"]
    assert sum(counts.values()) == 30
    assert any(f"test by digit: 0 {counts['0']}, 1 " in line for line in dataset.report.lines())
    without = prepare(files(path, **settings))
    assert without.test.texts == dataset.test.texts
    # What is trained on is the same data, what is scored on is not.
    assert digests(without)[:2] == digests(dataset)[:2]
    assert without.test.digest != dataset.test.digest


def test_order_of_rows_changes_nothing_even_where_equal_texts_differ_in_a_slice(tmp_path: Path) -> None:
    texts, labels = TEXTS + TEXTS, LABELS + LABELS
    values = ["first"] * len(TEXTS) + ["second"] * len(TEXTS)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    paths = [
        write_csv(tmp_path / f"{name}.csv", *([column[i] for i in rows] for column in (texts, labels)),
                  seen=[values[i] for i in rows])
        for name, rows in (("one", range(len(texts))), ("two", order))
    ]  # fmt: skip
    one, two = (prepare(files(path, slice_columns=["seen"])) for path in paths)
    assert digests(one) == digests(two)
    assert one.test.slices == two.test.slices == {"seen": ["first"] * len(one.test)}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_values_are_strings_and_none_is_missing(tmp_path: Path, ending: str) -> None:
    given: list[Any] = [1, None, 2, None]
    train = write_csv(tmp_path / "train.csv", TEXTS, LABELS)  # needs no such column
    test, texts, labels = str(tmp_path / f"test.{ending}"), ["a", "b", "c", "d"], ["negative", "positive"] * 2
    columns = {"text": texts, "label": labels, "stars": given, "shop": [" x", "", "y ", "missing"]}
    if ending == "csv":
        write_csv(Path(test), texts, labels, stars=given, shop=columns["shop"])
    elif ending == "jsonl":
        records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        write_jsonl(Path(test), [{key: value for key, value in record.items() if value} for record in records])
    else:
        pq.write_table(pa.table(columns), test)
    split = prepare(files(train, test, slice_columns=["shop", "stars"])).test
    found = {text: (shop, stars) for text, shop, stars in zip(split.texts, *split.slices.values(), strict=True)}
    assert list(split.slices) == ["shop", "stars"]
    assert found == {"a": ("x", "1"), "b": ("missing",) * 2, "c": ("y", "2"), "d": ("missing",) * 2}


def test_not_a_number_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    pd.DataFrame({"text": ["a", "b"], "label": ["negative", "positive"], "x": [1.5, float("nan")]}).to_parquet(path)
    split = prepare(files(write_csv(tmp_path / "a.csv", TEXTS, LABELS), str(path), slice_columns=["x"])).test
    assert dict(zip(split.texts, split.slices["x"], strict=True)) == {"a": "1.5", "b": "missing"}


def test_a_column_that_is_not_there_or_has_too_many_values(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TEXTS, LABELS, number=list(range(200)), half=[n // 4 for n in range(200)])
    with pytest.raises(DataError, match=r"a\.csv has no column 'shop'; found columns: text, label, number, half: set "
                       r"data\.slice_columns"):  # fmt: skip
        prepare(files(path, slice_columns=["half", "shop"]))
    too_many = (r"a\.csv: the column 'number' has 200 different values \('0', '1', '10', \.\.\.\), and a slice column "
                r"at most 50: take it out of data\.slice_columns")  # fmt: skip
    with pytest.raises(DataError, match=too_many):
        prepare(files(path, slice_columns=["number"]))
    assert len(prepare(files(path, slice_columns=["half"])).report.test_slices["half"]) <= 50


def test_several_files(tmp_path: Path) -> None:
    paths = [
        write_csv(tmp_path / f"{part}.csv", TEXTS[half], LABELS[half], part=[part] * 100)
        for part, half in (("a", slice(0, 100)), ("b", slice(100, 200)))
    ]
    split = prepare(files(paths, slice_columns=["part"])).test
    numbers = [int(text.split()[-1]) for text in split.texts]
    assert split.slices["part"] == ["a" if number < 100 else "b" for number in numbers]
    assert {*split.slices["part"]} == {"a", "b"}


def test_built_in_texts_have_a_topic() -> None:
    sliced, plain = prepare(DataConfig(slice_columns=["topic"])), prepare(DataConfig())
    assert sliced.test.texts == plain.test.texts
    assert set(sliced.test.slices["topic"]) == set(TOPICS)
    of_text = dict(zip(generate(1000, 7, start=TEST_START)[0], topics(1000, 7, start=TEST_START), strict=True))
    assert sliced.test.slices["topic"] == [of_text[text] for text in sliced.test.texts]
    words = {"film": "plot", "restaurant": "menu", "product": "battery"}
    for topic, word in words.items():
        found = [of for text, of in of_text.items() if word in text.lower()]
        assert found.count(topic) == len(found) > 0


def test_a_topic_that_is_part_of_the_class_is_that_one() -> None:
    names = class_names("topic_sentiment")
    labels = generate(500, 3, task="topic_sentiment", imbalance=20.0)[1]
    found = topics(500, 3, task="topic_sentiment", imbalance=20.0)
    assert found == [names[label].partition("-")[0] for label in labels]
