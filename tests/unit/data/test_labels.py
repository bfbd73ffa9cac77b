from __future__ import annotations

from typing import Any

import pytest

from configs.data import DataConfig
from ray_jobs.data.labels import Labels, f1_definition, resolve_labels
from ray_jobs.data.rows import DataError
from tests.unit.data.builders import raw, rows


def resolve(
    train: list[Any],
    test: list[Any] | None = None,
    names: list[str] | None = None,
    source: tuple[str, ...] | None = None,
) -> Labels:
    test_rows = None if test is None else rows(["text"] * len(test), test, name="test.csv")
    data = DataConfig(label_names=names)
    return resolve_labels(raw(rows(["text"] * len(train), train, name="train.csv"), test_rows, source), data)


@pytest.mark.parametrize(
    ("train", "names", "source", "expected_names", "kind", "expected_ids"),
    [
        ([0, 1, 1], None, None, ("0", "1"), "int", [0, 1, 1]),
        (["1", " 0 ", "1.0"], None, None, ("0", "1"), "int", [1, 0, 1]),
        ([1.0, 0.0], None, None, ("0", "1"), "int", [1, 0]),
        ([True, False], None, None, ("0", "1"), "int", [1, 0]),
        ([0, 1], ["bad", "good"], None, ("bad", "good"), "int", [0, 1]),
        ([1, 0, 2], None, ("a", "b", "c"), ("a", "b", "c"), "int", [1, 0, 2]),
        ([1, 0], ["bad", "good"], ("neg", "pos"), ("bad", "good"), "int", [1, 0]),
        (["b", "a", "c "], None, None, ("a", "b", "c"), "str", [1, 0, 2]),
        (["b", "a"], ["b", "a"], None, ("b", "a"), "str", [0, 1]),
        (["1", "3", "5"], ["5", "3", "1"], None, ("5", "3", "1"), "str", [2, 1, 0]),
        ([1, 5], ["1", "5"], None, ("1", "5"), "str", [0, 1]),
        (["1", "n/a"], ["1", "n/a"], None, ("1", "n/a"), "str", [0, 1]),
        ([0, 1], ["0", "1"], None, ("0", "1"), "int", [0, 1]),
        (["e\u0301", "x"], ["\u00e9", "x"], None, ("\u00e9", "x"), "str", [0, 1]),
    ],
)
def test_labels(
    train: list[Any],
    names: list[str] | None,
    source: tuple[str, ...] | None,
    expected_names: tuple[str, ...],
    kind: str,
    expected_ids: list[int],
) -> None:
    labels = resolve(train, names=names, source=source)
    assert (labels.names, labels.kind, labels.train.tolist()) == (expected_names, kind, expected_ids)
    assert labels.test is None
    assert labels.train.dtype == "int64"


def test_test_split_uses_the_names_of_train() -> None:
    assert resolve(["c", "a", "b"], ["b", "a"]).test.tolist() == [1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        ([0, None, 1], {}, r"train\.csv, row 2: the label is missing \(None\)"),
        ([0, 1, float("nan")], {}, r"row 3: the label is missing \(nan\)"),
        (["a", "b", ""], {}, r"row 3: the label is missing \(''\)"),
        (["0", "1", "NaN"], {}, r"row 3: the label is missing \('NaN'\)"),
        ([0, 0.5, 1], {}, r"row 2: the label 0\.5 is not a whole number.*turn scores into classes"),
        (["0", "1", "0.5"], {}, r"row 3: the label 0\.5 is not a whole number"),
        ([0, float("inf")], {}, r"row 2: the label inf is not a whole number"),
        ([0, ["a", "b"]], {}, r"row 2: the label is of type list, expected one class per text"),
        ([0, 1, "good", 1], {}, r"row 3: the label 'good' stands among 3 numbers and 1 names: use one kind"),
        (["good", "bad", 3], {}, r"row 3: the label 3 stands among 1 numbers and 2 names"),
        ([1, 2, 1], {}, r"row 1: label 1, but integer labels must be 0 to k-1 without a gap, found '1', '2': renumber"),
        ([0, 1, 3], {}, r"row 3: label 3, .* found '0', '1', '3'"),
        ([0, -1], {}, r"row 2: label -1, but integer labels must be 0 to k-1"),
        ([0, 1, 2], {"names": ["a", "b"]}, r"row 3: unknown label 2 in train, in 1 of 3 rows; expected 0 to 1"),
        ([0, 10**30], {"names": ["a", "b"]}, r"row 2: unknown label 1000"),
        (["a", "b", "c"], {"names": ["a", "b"]}, r"row 3: unknown label 'c' in train.*data\.label_names has 'a', 'b'"),
        ([1, 1, 1], {}, r"row 1: label 1, but integer"),
        ([0, 0], {}, r"train\.csv: all 2 training rows have one class, '0': a classifier needs at least two"),
        (["same", "same"], {}, r"train\.csv: all 2 training rows have one class, 'same'"),
        ([0, 0], {"source": ("a", "b")}, r"all 2 training rows have one class, 'a'"),
        ([0, 1], {"source": ("a", "b", "c")}, r"no training text has the class 'c'"),
        ([0, 1], {"source": ("a", "b"), "names": ["a", "b", "c"]}, r"has 3 names, but the source has 2 classes"),
        ([0, 1], {"source": ("a", "b"), "names": ["b", "a"]}, r"in the source the ids mean 'a', 'b', in this order"),
        ([0, 1], {"test": [0, 2]}, r"test\.csv, row 2: unknown label 2 in test"),
        (["a", "b"], {"test": ["a", "x", "x"]}, r"test\.csv, row 2: unknown label 'x' in test, in 2 of 3 rows"),
        (["a", "b"], {"test": ["a", 7]}, r"test\.csv, row 2: the label 7 stands among 1 numbers and 3 names"),
        (["1", "5"], {"test": ["1", "7"], "names": ["1", "5"]}, r"test\.csv, row 2: unknown label '7' in test"),
    ],
)
def test_bad_labels(train: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve(train, **settings)


@pytest.mark.parametrize(
    ("names", "kind", "given", "key"),
    [
        (("bad", "good"), "int", None, "binary:good"),
        (("0", "1"), "int", None, "binary:1"),
        (("negative", "positive"), "str", None, "binary:positive"),
        (("positive", "rest"), "str", None, "binary:positive"),
        (("positive", "rest"), "int", None, "binary:rest"),
        (("ham", "spam"), "str", "spam", "binary:spam"),
        (("ham", "spam"), "int", "ham", "binary:ham"),
        (("a", "b", "c"), "str", None, "macro"),
    ],
)
def test_f1_definition(names: tuple[str, ...], kind: Any, given: str | None, key: str) -> None:
    assert f1_definition(names, kind, given).key == key


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("ham", "spam"), None, r"None of 'ham', 'spam' is named 'positive': set data\.positive_label"),
        (("ham", "spam"), "eggs", r"data\.positive_label is 'eggs', but the classes are 'ham', 'spam'"),
        (("a", "b", "c"), "a", r"there are 3 classes .*: remove data\.positive_label"),
    ],
)
def test_no_f1_definition(names: tuple[str, ...], given: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        f1_definition(names, "str", given)
