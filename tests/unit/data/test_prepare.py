from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.data import DataConfig
from ray_jobs.data.prepare import Dataset, Split, prepare, prepare_rows
from ray_jobs.data.rows import DataError
from serve_app.inference.digests import content_id, split_digest
from tests.unit.data.builders import files, raw, reviews, rows, write_csv, write_jsonl


def prepared(
    texts: list[Any], labels: list[Any], test: tuple[list[Any], list[Any]] | None = None, **settings: Any
) -> Dataset:
    test_rows = None if test is None else rows(*test, name="test.csv")
    return prepare_rows(raw(rows(texts, labels, name="train.csv"), test_rows), DataConfig(**settings))


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def test_splits_are_disjoint_complete_stratified_and_digested() -> None:
    texts, labels = reviews(900)
    dataset = prepared(texts, labels, validation_fraction=0.2)
    together = [text for split in splits(dataset).values() for text in split.texts]
    assert sorted(together) == sorted(texts)
    assert dataset.label_names == ("negative", "positive")
    assert len(dataset.validation) == round(0.2 * (900 - len(dataset.test)))
    assert dataset.validation.labels.mean() == pytest.approx(dataset.train.labels.mean(), abs=0.005)
    assert len(dataset.test) / 900 == pytest.approx(0.2, abs=0.05)
    for name, split in splits(dataset).items():
        assert split.ids == [content_id(text) for text in split.texts] == sorted(split.ids)
        assert split.digest == split_digest(split.ids, split.texts, split.labels, dataset.label_names)
        assert split.digest == dataset.report.digests[name]
        assert len(split) == len(split.texts) == len(split.labels) == sum(dataset.report.classes[name].values())
        assert split.labels.dtype == np.int64
        truth = dict(zip(texts, labels, strict=True))
        assert [dataset.label_names[i] for i in split.labels] == [truth[text] for text in split.texts]


def test_row_order_changes_nothing() -> None:
    texts, labels = reviews(300)
    texts, labels = texts + texts[:9] + ["both"] * 3, labels + labels[:9] + ["positive", "negative", "positive"]
    settings: dict[str, Any] = {"max_train_texts": 100, "max_test_texts": 30, "max_validation_texts": 10}
    first = prepared(texts, labels, **settings)
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    second = prepared([texts[i] for i in order], [labels[i] for i in order], **settings)
    for one, other in zip(splits(first).values(), splits(second).values(), strict=True):
        assert (one.texts, one.labels.tolist(), one.digest) == (other.texts, other.labels.tolist(), other.digest)


def test_row_order_changes_nothing_with_given_ids() -> None:
    texts, labels = reviews(60)
    texts, labels = texts + texts, labels + labels  # every text twice, under two ids
    ids = [f"n{i}" for i in range(120)]
    order = list(reversed(range(120)))
    digests = [
        [split.digest for split in splits(prepare_rows(raw(rows(*columns)), DataConfig())).values()]
        for columns in ((texts, labels, ids), tuple([column[i] for i in order] for column in (texts, labels, ids)))
    ]
    assert digests[0] == digests[1]


def test_new_rows_never_move_old_ones_into_or_out_of_test() -> None:
    texts, labels = reviews(400)
    before = prepared(texts, labels)
    more_texts, more_labels = reviews(700, start=5000)
    after = prepared(more_texts[:350] + texts + more_texts[350:], more_labels[:350] + labels + more_labels[350:])
    assert set(after.test.texts) & set(texts) == set(before.test.texts)


def test_a_few_new_rows_move_hardly_any_old_ones_between_train_and_validation() -> None:
    texts, labels = reviews(400)
    test = (["unseen one", "unseen two"], ["positive", "negative"])
    before = prepared(texts, labels, test)
    extra = reviews(10, start=5000)
    after = prepared(texts + extra[0], labels + extra[1], test)
    assert len(set(before.validation.texts) - set(after.validation.texts)) <= 2


def test_test_fraction_grows_the_test_split() -> None:
    texts, labels = reviews(400)
    small, large = (prepared(texts, labels, test_fraction=share) for share in (0.1, 0.4))
    assert set(small.test.texts) < set(large.test.texts)


def test_the_seed_draws_other_splits() -> None:
    texts, labels = reviews(400)
    one, other = prepared(texts, labels), prepared(texts, labels, seed=14)
    assert set(one.test.texts) != set(other.test.texts)


def test_digests_change_exactly_with_the_content() -> None:
    texts, labels = reviews(200)
    test_texts, test_labels = reviews(40, start=1000)
    base = prepared(texts, labels, (test_texts, test_labels))
    changed_text = prepared(texts, labels, (["another review", *test_texts[1:]], test_labels))
    changed_label = prepared(texts, labels, (test_texts, [test_labels[2], *test_labels[1:]]))
    spaced = prepared(texts, labels, ([f"  {text}<br />" for text in test_texts], test_labels))
    assert len({base.test.digest, changed_text.test.digest, changed_label.test.digest}) == 3
    assert spaced.test.digest == base.test.digest
    assert {one.train.digest for one in (base, changed_text, changed_label, spaced)} == {base.train.digest}


def test_duplicates_conflicts_and_leakage() -> None:
    texts, labels = reviews(100)
    train_texts = [*texts, "review  number 1", "review number 2<br />", "two minds", "two minds", "seen in test"]
    train_labels = [*labels, "negative", "negative", "positive", "negative", "positive"]
    test_texts = ["seen in test", "seen in test", "test only", "torn", "torn", "review number 5"]
    test_labels = ["negative", "negative", "positive", "positive", "negative", "negative"]
    dataset = prepared(train_texts, train_labels, (test_texts, test_labels))
    report = dataset.report
    assert (report.source["train"].read, report.source["test"].read) == (105, 6)
    assert (report.source["train"].duplicates_removed, report.source["test"].duplicates_removed) == (2, 1)
    assert report.source["train"].changed_by_cleaning == 2
    assert (report.source["train"].conflicting_texts, report.source["train"].conflicting_rows_removed) == (1, 2)
    assert (report.source["test"].conflicting_texts, report.source["test"].conflicting_rows_removed) == (1, 2)
    assert (report.train_in_test, report.train_in_test_other_label) == (2, 1)
    assert report.conflicts[0] == {
        "split": "train",
        "text": "two minds",
        "labels": ["negative", "positive"],
        "rows": ["train.csv, row 103", "train.csv, row 104"],
    }
    assert sorted(dataset.test.texts) == ["review number 5", "seen in test", "test only"]
    learnt = set(dataset.train.texts) | set(dataset.validation.texts)
    assert learnt == set(texts) - {"review number 5"}
    assert len(dataset.train) + len(dataset.validation) == len(learnt)


def test_sampling_the_test_split_does_not_change_train() -> None:
    texts, labels = reviews(100)
    test = reviews(60, start=80)  # 20 of them stand in train
    whole, sampled = prepared(texts, labels, test), prepared(texts, labels, test, max_test_texts=10)
    assert whole.report.train_in_test == sampled.report.train_in_test == 20
    assert whole.train.digest == sampled.train.digest
    assert len(sampled.test) == 10
    assert set(sampled.test.texts) < set(whole.test.texts)


def test_samples_are_stratified() -> None:
    texts, labels = reviews(900)
    dataset = prepared(texts, labels, max_train_texts=90, max_validation_texts=30, max_test_texts=60)
    assert [len(split) for split in splits(dataset).values()] == [90, 30, 60]
    assert [int(split.labels.sum()) for split in splits(dataset).values()] == [
        pytest.approx(size / 3, abs=2) for size in (90, 30, 60)
    ]
    assert dataset.report.not_sampled["train"] > 0


def test_many_classes_and_a_rare_one() -> None:
    texts = [f"text {n}" for n in range(400)]
    labels = ["rare" if n < 2 else f"class {n % 5}" for n in range(400)]
    test = ([f"test {n}" for n in range(6)], ["rare", *(f"class {n}" for n in range(5))])
    dataset = prepared(texts, labels, test)
    assert dataset.f1.key == "macro"
    assert len(dataset.label_names) == 6
    assert dataset.report.classes["train"]["rare"] == dataset.report.classes["validation"]["rare"] == 1


def test_progress_and_report() -> None:
    said: list[str] = []
    dataset = prepare(DataConfig.model_validate({"generator": {"texts": 200, "test_texts": 50}}), said.append)
    assert said[0] == "reading data from builtin"
    assert dataset.f1.key == "binary:positive"
    values = json.loads(json.dumps(dataset.report.as_dict()))
    assert values["label_names"] == ["negative", "positive"]
    assert values["source"]["train"]["read"] == 200
    lines = "\n".join(dataset.report.lines())
    assert "source train: 200 read" in lines
    assert f"test: {len(dataset.test)} texts" in lines
    assert dataset.test.digest[:12] in lines


def test_report_tells_what_was_found() -> None:
    texts, labels = reviews(60)
    dataset = prepared(
        [*texts, "x" * 100, "x" * 100, ""],
        [*labels, "positive", "negative", "positive"],
        empty_texts="drop",
        max_train_texts=20,
    )
    lines = "\n".join(dataset.report.lines())
    for part in (
        "1 empty dropped",
        "2 removed for 1 text with two labels",
        "xxx…'",
        "train.csv, row 61; train.csv, row 62",
        "no test split",
        "left out by data.max_train_texts",
    ):
        assert part in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"row 3: the text is empty: fill it in, remove the row, or set data\.empty_texts=drop"),
        (" <br />\u00a0", r"row 3: the text is empty"),
        (None, r"row 3: the text is missing"),
        (5, r"row 3: the text is of type int \('5'\), expected a string: check data\.text_column"),
        (float("nan"), r"row 3: the text is of type float"),
        (b"bytes", r"row 3: the text is of type bytes"),
    ],
)
def test_bad_text(text: Any, message: str) -> None:
    texts, labels = reviews(40)
    with pytest.raises(DataError, match=rf"train\.csv, {message}"):
        prepared([*texts[:2], text, *texts[2:]], ["positive", *labels])
    with pytest.raises(DataError, match=rf"test\.csv, {message}"):
        prepared(texts, labels, (["a", "b", text], ["positive", "negative", "positive"]))


def test_empty_texts_can_be_dropped_with_their_labels() -> None:
    texts, labels = reviews(60)
    dataset = prepared(["", *texts, None], [None, *labels, "unheard of"], empty_texts="drop")
    assert dataset.report.source["train"].empty_dropped == 2
    assert dataset.label_names == ("negative", "positive")
    with pytest.raises(DataError, match=r"train\.csv, row 63: the label is missing"):
        prepared(["", *texts, None, "a"], [None, *labels, None, None], empty_texts="drop")
    with pytest.raises(DataError, match=r"train\.csv, row 1: this text and all 1 after it are empty"):
        prepared(["", " "], ["positive", "negative"], empty_texts="drop")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], r"train\.csv, row 3: the id 'a' was already used \(train\.csv, row 1\): make ids unique"),
        (["a", None, "b"], r"train\.csv, row 2: the id is missing"),
        (["a", "b", " "], r"train\.csv, row 3: the id is missing"),
        ([1.0, float("nan"), 2.0], r"train\.csv, row 2: the id is missing"),
    ],
)
def test_bad_ids(ids: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_rows(raw(rows(["x", "y", "z"], [0, 1, 0], ids, name="train.csv")), DataConfig())


def test_given_ids_are_kept(tmp_path: Path) -> None:
    texts, labels = reviews(60)
    path = write_csv(tmp_path / "a.csv", texts, labels, number=list(range(60)))
    dataset = prepare(files(path, id_column="number"))
    for split in splits(dataset).values():
        assert [texts[int(row_id)] for row_id in split.ids] == split.texts


def test_a_class_that_a_split_would_lack() -> None:
    texts, labels = reviews(30)
    with pytest.raises(DataError, match=r"too few training texts after cleaning, for class 'rare' \(1\)"):
        prepared([*texts, "one"], [*labels, "rare"], (["a", "b", "c"], ["positive", "negative", "rare"]))
    with pytest.raises(DataError, match=r"the test split has no text of class 'positive' \(1 texts in all\).*add"):
        prepared(texts, labels, (["a"], ["negative"]))
    tiny = [f"tiny {n}" for n in range(8)]
    with pytest.raises(DataError, match=r"the test split has no text of class .*raise data\.test_fraction"):
        prepared(tiny, ["positive", "negative"] * 4, test_fraction=0.01)


def test_a_sample_too_small_for_the_classes() -> None:
    texts = [f"text {n}" for n in range(200)]
    with pytest.raises(DataError, match=r"data\.max_test_texts is 3, but there are 5 classes"):
        prepared(texts, [n % 5 for n in range(200)], max_test_texts=3)


def test_every_training_text_in_test() -> None:
    texts, labels = reviews(10)
    with pytest.raises(DataError, match=r"too few training texts after cleaning, for class 'negative' \(0\)"):
        prepared(texts, labels, (texts, labels))


def test_errors_of_files_name_file_and_row(tmp_path: Path) -> None:
    texts, labels = reviews(40)
    good = write_csv(tmp_path / "good.csv", texts, labels)
    empty = write_csv(tmp_path / "empty.csv", ["fine", ""], ["positive", "negative"])
    number = write_jsonl(tmp_path / "number.jsonl", [{"text": 3, "label": "positive"}])
    absent = write_jsonl(tmp_path / "absent.jsonl", [{"text": "a", "label": "positive"}, {"text": "b"}])
    for bad, message in (
        (empty, r"empty\.csv, row 2: the text is empty"),
        (number, r"number\.jsonl, row 1: the text is of type int"),
        (absent, r"absent\.jsonl, row 2: the label is missing"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(files([good, bad]))
    unknown = write_csv(tmp_path / "unknown.csv", ["new"], ["neutral"])
    with pytest.raises(DataError, match=r"unknown\.csv, row 1: unknown label 'neutral' in test"):
        prepare(files(good, unknown))
    ham = write_csv(tmp_path / "ham.csv", texts, ["ham" if label == "positive" else "spam" for label in labels])
    with pytest.raises(DataError, match=r"None of 'ham', 'spam' is named 'positive': set data\.positive_label"):
        prepare(files(ham))
    assert prepare(files(ham, positive_label="spam")).f1.key == "binary:spam"
