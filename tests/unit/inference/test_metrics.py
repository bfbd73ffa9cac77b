"""Scores against scikit-learn, and what they refuse."""

import numpy as np
import pytest
from sklearn import metrics as judge

from serve_app.inference.digests import content_id, split_digest
from serve_app.inference.metrics import F1Definition, classification_scores


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_equal_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 400)
    probabilities = rng.dirichlet(np.ones(classes), 400)
    names = [f"class {i}" for i in range(classes)]
    definition = F1Definition("binary", "class 1") if classes == 2 else F1Definition("macro")
    scores = classification_scores(labels, probabilities, names, definition)
    predicted = probabilities.argmax(1)
    average = "binary" if classes == 2 else "macro"
    assert scores["f1"] == pytest.approx(judge.f1_score(labels, predicted, average=average))
    assert scores["accuracy"] == pytest.approx(judge.accuracy_score(labels, predicted))
    assert scores["log_loss"] == pytest.approx(judge.log_loss(labels, probabilities, labels=list(range(classes))))
    assert scores["confusion"] == judge.confusion_matrix(labels, predicted).tolist()
    precision, recall, _, support = judge.precision_recall_fscore_support(labels, predicted)
    for i, name in enumerate(names):
        found = scores["per_class"][name]
        assert (found["precision"], found["recall"], found["support"]) == pytest.approx(
            (precision[i], recall[i], support[i])
        )


def test_binary_f1_is_of_the_positive_label() -> None:
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 4)
    names = ["no", "yes"]
    assert classification_scores(labels, probabilities, names, F1Definition("binary", "yes"))["f1"] == 0.0
    assert classification_scores(labels, probabilities, names, F1Definition("binary", "no"))["f1"] == pytest.approx(
        6 / 7
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_probabilities_are_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 texts"):
        classification_scores(np.array([0, 1]), np.array([[0.5, 0.5], [bad, 0.5]]), ["a", "b"], F1Definition("macro"))


def test_no_texts_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        classification_scores(np.array([], dtype=int), np.empty((0, 2)), ["a", "b"], F1Definition("macro"))


def test_definitions_have_keys() -> None:
    for definition in (F1Definition("macro"), F1Definition("binary", "a:b")):
        assert F1Definition.from_key(definition.key) == definition
    for wrong in ("binary", "binary:", "micro", ""):
        with pytest.raises(ValueError, match="no F1 definition"):
            F1Definition.from_key(wrong)


def test_split_digest_follows_content_not_order() -> None:
    ids, texts, labels, names = ["1", "2", "3"], ["a", "b", "c"], [0, 1, 0], ["n", "p"]
    digest = split_digest(ids, texts, labels, names)
    assert digest == split_digest(ids[::-1], texts[::-1], labels[::-1], names)
    assert digest == split_digest(ids, texts, np.array(labels), tuple(names))
    others = [
        split_digest(["1", "2", "4"], texts, labels, names),
        split_digest(ids, ["a", "b", "d"], labels, names),
        split_digest(ids, texts, [0, 1, 1], names),
        split_digest(ids, texts, labels, ["n", "q"]),
        split_digest(ids[:2], texts[:2], labels[:2], names),
        split_digest(["1a", "2", "3"], ["", "b", "c"], labels, names),
    ]
    assert len({digest, *others}) == 7


def test_slices_are_part_of_the_digest_and_none_leave_it_as_it_was() -> None:
    split = (["1", "2"], ["a", "b"], [0, 1], ["n", "p"])
    without = split_digest(*split)
    assert without == "6ba25edbbe60560652bbf76be10d6f6d5d278366c914a7a6f0c4783bb037c2b7"
    assert without == split_digest(*split, {})
    two = {"x": ["1", "2"], "y": ["3", "4"]}
    assert split_digest(*split, two) == split_digest(*split, dict(reversed(two.items())))
    others = [
        split_digest(*split, {"x": ["1", "2"]}),
        split_digest(*split, {"z": ["1", "2"]}),
        split_digest(*split, {"x": ["1", "3"]}),
        split_digest(*split, two),
        split_digest(*split, {"x": ["3", "4"], "y": ["1", "2"]}),
        split_digest(["1", "2"], ["a", "b"], [0, 1], ["n", "p", "x"]),
    ]
    assert len({without, *others}) == 7


def test_content_id_is_stable() -> None:
    assert content_id("abc") == "ba7816bf8f01cfea414140de5dae2223"
