"""Behavioural tests run on models that are a few lines of Python, and what their reports say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from gate.behaviour import (
    BehaviourError,
    BehaviourReport,
    behaviour_checks,
    behaviour_lines,
    behaviour_of,
    run_suite,
)
from gate.suite import SHIPPED, Suite, parse_suite, read_suite

LABELS = ("negative", "positive")
FILE = b"""
name: own
labels: [negative, positive]
tests:
  - capability: words
    type: MFT
    description: what it says
    expect: {positive: [it is good, good indeed], negative: [it is bad]}
  - capability: words
    type: INV
    description: capital letters
    perturb: upper_case
    texts: [it is good, it is bad]
  - capability: steadiness
    type: INV
    description: hardly moves
    tolerance: 0.05
    pairs: [[good, good good], [bad, nothing]]
  - capability: direction
    type: DIR
    description: more praise
    toward: positive
    min_change: 0.05
    texts: [well, bad]
    append: It is good.
"""


class Keywords:
    """A model that counts "good" and "bad": the probability of positive is 0.5, and 0.1 more or less for each."""

    def __init__(self, labels: tuple[str, ...] = LABELS, change: Callable[[str], str] = str.lower) -> None:
        self.labels, self._change, self.calls = labels, change, 0

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        assert len(set(texts)) == len(texts)
        changed = [self._change(text) for text in texts]
        positive = np.asarray([0.501 + 0.1 * text.count("good") - 0.1 * text.count("bad") for text in changed])
        columns = {"positive": positive, "negative": 1 - positive}
        return np.stack([columns.get(label, np.zeros(len(texts))) for label in self.labels], axis=1)


def run(model: Keywords) -> BehaviourReport:
    return BehaviourReport.of([run_suite(parse_suite(FILE, "own.yaml"), model.predict, model.labels)])


def failures(report: BehaviourReport) -> list[int]:
    return [test.failures for suite in report.suites for test in suite.tests]


def test_each_type_is_judged_by_its_own_rule() -> None:
    model = Keywords()
    report = run(model)
    assert model.calls == 1
    assert [test.cases for test in report.suites[0].tests] == [3, 2, 2, 2]
    assert failures(report) == [0, 0, 2, 0]
    grew, turned = report.suites[0].tests[2].examples
    assert (grew.text, grew.changed) == ("good", "good good")
    assert (grew.expected, grew.found) == ("positive 0.601 as before, within 0.05", "positive 0.701")
    assert (turned.expected, turned.found) == ("negative 0.599 as before, within 0.05", "positive 0.501")


def test_a_model_that_minds_case_fails_where_case_is_tested() -> None:
    assert failures(run(Keywords(change=str))) == [0, 1, 2, 0]  # "it is GOOD" stays positive by a hair


def test_a_model_that_has_it_backwards_fails_what_has_a_direction() -> None:
    report = run(Keywords(labels=LABELS[::-1]))
    assert failures(report) == [0, 0, 2, 0]  # another order of the labels changes nothing
    swapped = run_suite(parse_suite(FILE, "own.yaml"), Keywords().predict, LABELS[::-1])
    assert [test.failures for test in swapped.tests] == [3, 0, 2, 2]
    assert swapped.tests[3].examples[0].expected == "positive at least 0.549, from 0.499"


def test_a_model_that_always_says_the_same_fails_minimum_functionality() -> None:
    suite = parse_suite(FILE, "own.yaml")
    report = run_suite(suite, lambda texts: np.tile([0.1, 0.9], (len(texts), 1)), LABELS)
    assert [test.failures for test in report.tests] == [1, 0, 0, 2]


def test_labels_that_the_model_does_not_have_are_said() -> None:
    model = Keywords(labels=("sports", "positive"))
    report = run(model)
    assert model.calls == 0
    assert report.capabilities == []
    assert report.suites[0].not_applicable == "it is about negative, positive, and the model has sports, positive"
    assert "does not apply: it is about negative" in behaviour_lines(report)[0]
    summary, least = behaviour_checks(report, {"words": 0.0})
    assert (summary.passed, summary.blocking) == (False, False)
    assert "does not apply" in summary.message
    assert (least.passed, least.blocking) == (False, True)
    assert least.message == "gate.min_behaviour asks for words, which no suite tested; tested: nothing"


def test_a_model_may_have_more_labels() -> None:
    assert failures(run(Keywords(labels=("mixed", "positive", "negative")))) == [0, 0, 2, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_output_that_is_not_finite_is_an_error(value: float) -> None:
    def predict(texts: Sequence[str]) -> np.ndarray:
        probabilities = Keywords().predict(texts)
        probabilities[list(texts).index("it is bad"), 0] = value
        return probabilities

    with pytest.raises(BehaviourError, match=r"suite own: .* not finite for 1 of 12 texts, first 'it is bad'"):
        run_suite(parse_suite(FILE, "own.yaml"), predict, LABELS)


def test_output_of_another_shape_is_an_error() -> None:
    with pytest.raises(BehaviourError, match=r"expected probabilities \[12, 2\], found \[12, 3\]"):
        run_suite(parse_suite(FILE, "own.yaml"), lambda texts: np.zeros((len(texts), 3)), LABELS)


def test_sums_are_by_capability_over_all_suites(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_bytes(FILE)
    second.write_bytes(FILE.replace(b"name: own", b"name: other"))
    report = behaviour_of(Keywords(), [read_suite(str(first)), read_suite(str(second))])
    assert [(c.name, c.cases, c.failures, c.pass_rate) for c in report.capabilities] == [
        ("words", 10, 0, 1.0),
        ("steadiness", 4, 4, 0.0),
        ("direction", 4, 0, 1.0),
    ]


def test_checks_follow_from_the_report_alone() -> None:
    report = BehaviourReport.model_validate_json(run(Keywords()).model_dump_json())
    assert report == run(Keywords())
    checks = {check.name: check for check in behaviour_checks(report, {"words": 1.0, "steadiness": 0.1, "rhyme": 0.0})}
    assert {name: (check.passed, check.blocking) for name, check in checks.items()} == {
        "behaviour_suite: own": (True, False),
        "behaviour: words": (True, True),
        "behaviour: steadiness": (False, True),
        "behaviour: rhyme": (False, True),
    }
    assert [(check.value, check.limit) for check in checks.values()] == [(7 / 9, None), (1, 1), (0, 0.1), (None, 0)]
    assert checks["behaviour_suite: own"].message == "7 of 9 cases passed"
    assert "0 of 2 cases passed (0.000); at least 0.1 is required" in checks["behaviour: steadiness"].message
    assert "tested: words, steadiness, direction" in checks["behaviour: rhyme"].message


def test_a_pass_rate_that_equals_its_minimum_passes() -> None:
    report = BehaviourReport.of([run_suite(thirds(), Keywords().predict, LABELS)])
    assert report.capabilities[0].pass_rate == 2 / 3
    assert behaviour_checks(report, {"words": 2 / 3})[1].passed
    assert not behaviour_checks(report, {"words": 0.67})[1].passed


def thirds() -> Suite:
    test = b"{capability: words, type: MFT, description: d, expect: {positive: [good, bad, well]}}"
    return parse_suite(b"name: own\nlabels: [positive]\ntests: [" + test + b"]", "own.yaml")


def test_a_report_that_contradicts_itself_is_refused() -> None:
    content = run(Keywords()).model_dump()
    content["capabilities"][1]["failures"] = 0
    with pytest.raises(ValidationError, match="not the sums"):
        BehaviourReport.model_validate(content)


def test_the_table_shows_every_capability_and_the_minima() -> None:
    lines = behaviour_lines(run(Keywords()), {"steadiness": 0.5})
    assert lines == [
        "capability  cases  failed  pass rate  least",
        "words           5       0      1.000",
        "steadiness      2       2      0.000   0.50",
        "direction       2       0      1.000",
    ]


def test_the_shipped_suite_tells_a_keyword_model_from_a_reader() -> None:
    """Counting words is enough for the vocabulary, and for nothing that turns a word round."""
    suite, slots = read_suite("sentiment"), yaml.safe_load((SHIPPED / "sentiment.yaml").read_text())["slots"]
    words = {"good": {*slots["good"], *slots["liked"]}, "bad": {*slots["bad"], *slots["hated"]}}

    def count(texts: Sequence[str]) -> np.ndarray:
        positive = []
        for text in texts:
            found = [word.strip(".,!?").lower() for word in text.split()]
            score = sum(word in words["good"] for word in found) - sum(word in words["bad"] for word in found)
            positive.append(0.5 + 0.49 * np.tanh(score))
        return np.stack([1 - np.asarray(positive), np.asarray(positive)], axis=1)

    rates = {
        capability.name: capability.pass_rate
        for capability in BehaviourReport.of([run_suite(suite, count, LABELS)]).capabilities
    }
    assert rates["vocabulary"] == rates["case"] == rates["intensity"] == 1.0
    assert rates["negation"] < 0.3
    assert rates["concession"] < 0.7
