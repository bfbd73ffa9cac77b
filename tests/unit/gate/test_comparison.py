"""Two models on the same texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gate.comparison import Comparison, compare, confusion_of, recomputed
from gate.evaluation import slice_score
from gate.slices import slices_of
from serve_app.inference.metrics import F1Definition, confusion_matrix, f1_score


@given(st.integers(2, 5), st.integers(2, 120), st.integers(0, 2**32 - 1))
def test_comparison_says_what_the_texts_say(classes: int, texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"c{place}" for place in range(classes)]
    labels = rng.integers(0, classes, texts)
    old, new = rng.random((texts, classes)), rng.random((texts, classes))
    half = np.arange(texts) < texts // 2
    definition = F1Definition("macro")
    found = compare([str(row) for row in range(texts)], labels, old, new, label_names=names, definition=definition,
                    slices={"half": half})  # fmt: skip
    before, after = old.argmax(axis=1), new.argmax(axis=1)
    assert found.gained == int(((after == labels) & (before != labels)).sum())
    assert found.lost == int(((after != labels) & (before == labels)).sum())
    assert found.agreement == pytest.approx(float((before == after).mean()))
    assert found.whole.candidate_f1 == pytest.approx(f1_score(labels, after, definition, names))
    assert found.whole.production_f1 == pytest.approx(f1_score(labels, before, definition, names))
    assert found.whole.difference.value == pytest.approx(found.whole.candidate_f1 - found.whole.production_f1)
    there = [F1Definition("binary", names[place]) for place in np.unique(labels[half])]
    of_half = [f1_score(labels[half], after[half], each, names) for each in there]
    assert found.slices[0].candidate_f1 == pytest.approx(np.mean(of_half))
    for candidate, predicted in ((True, after), (False, before)):
        expected = confusion_matrix(labels, predicted, classes)
        np.testing.assert_array_equal(confusion_of(found.whole.cells, classes, candidate=candidate), expected)
    assert {labels[int(row)] == after[int(row)] for row in found.gained_examples} <= {True}
    assert recomputed(Comparison.model_validate_json(found.model_dump_json())) == found


def test_pairing_makes_small_differences_visible() -> None:
    """Both models are wrong on the same texts but for 30, and on all of these the candidate is right."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 2000)
    wrong = np.arange(2000) < 200
    old = np.eye(2)[np.where(wrong, 1 - labels, labels)]
    new = np.eye(2)[np.where(wrong & (np.arange(2000) >= 30), 1 - labels, labels)]
    ids = [str(row) for row in range(2000)]
    found = compare(ids, labels, old, new, label_names=["n", "p"], definition=F1Definition("binary", "p"), slices={})
    assert found.significant
    assert (found.gained, found.lost) == (30, 0)
    assert found.mcnemar_p < 1e-8
    assert found.gained_examples == ids[:20]
    same = compare(ids, labels, old, old, label_names=["n", "p"], definition=F1Definition("binary", "p"), slices={})
    assert not same.significant
    assert (same.whole.difference.low, same.whole.difference.high, same.mcnemar_p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("definition", [F1Definition("binary", "c"), F1Definition("macro")])
def test_a_slice_is_measured_by_the_classes_that_it_has(definition: F1Definition) -> None:
    """The slice has texts of a and b only, and the candidate loses every second of them."""
    labels = np.array([0, 1, 2] * 20)
    old, part = np.eye(3)[labels], labels < 2
    new = np.eye(3)[np.where(part & (np.arange(60) % 2 == 0), 2, labels)]
    found = compare([str(row) for row in range(60)], labels, old, new, label_names=["a", "b", "c"],
                    definition=definition, slices={"part": part}).slices[0]  # fmt: skip
    assert found.production_f1 == 1.0
    assert found.candidate_f1 == pytest.approx(2 / 3)  # recall 1/2, precision 1, of both
    assert found.difference.high < 0.0
    score = slice_score("part", confusion_of(found.cells, 3, candidate=True), definition.averaged(["a", "b", "c"]))
    assert score.f1.value == found.candidate_f1


def test_slices() -> None:
    texts = ["a b c", "not d", "isn't it fine", "one two three four", "x", "never mind the rest of it all", "y z", "q"]
    found = slices_of(texts, {"source": ["web", "app"] * 4, "same": ["x"] * 8})
    assert found["negation: with"].tolist() == [False, True, True, False, False, True, False, False]
    assert (found["negation: with"] ^ found["negation: without"]).all()
    assert found["source: app"].tolist() == [False, True] * 4
    assert not any(name.startswith("same") for name in found)
    lengths = [members for name, members in found.items() if name.startswith("length")]
    assert np.sum(lengths, axis=0).tolist() == [1] * 8
    assert next(name for name in found if name.startswith("length")) == "length: 1 to 1 words"


def test_texts_of_one_length_have_no_slices_of_length() -> None:
    assert list(slices_of(["a b", "c d", "e f"], {})) == []
