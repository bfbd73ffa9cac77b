"""What a trained model must be able to do, capability by capability, and that broken ones are found out."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from gate.behaviour import BehaviourReport, Predict, behaviour_checks, run_suite
from gate.suite import read_suite
from serve_app.inference.engine import Engine

# Capabilities whose tests name the label that a text must get; the others compare two answers.
WITH_A_LABEL = {"vocabulary", "verdicts", "negation", "concession", "time", "other opinions", "intensity"}


def test_capability(report: BehaviourReport, capability: str, least: float) -> None:
    checks = {check.name: check for check in behaviour_checks(report, {capability: least})}
    check = checks[f"behaviour: {capability}"]
    tests = [test for suite in report.suites for test in suite.tests if test.capability == capability]
    shown = [
        f"  {test.type} {test.description}: '{example.text}'" + (f" -> '{example.changed}'" if example.changed else "")
        + f": expected {example.expected}, found {example.found}"
        for test in tests for example in test.examples
    ]  # fmt: skip
    reasons = [suite.not_applicable for suite in report.suites if suite.not_applicable]
    if not check.passed:
        pytest.fail("\n".join([check.message, *reasons, *shown]), pytrace=False)


@pytest.fixture(scope="module")
def sentiment_model(model: Engine) -> Engine:
    if not {"negative", "positive"} <= set(model.labels):
        pytest.skip("the model that was given is not about sentiment")
    return model


def failed(predict: Predict, labels: Sequence[str], least: float) -> set[str]:
    """The capabilities at which the shipped suite finds less than ``least``."""
    report = BehaviourReport.of([run_suite(read_suite("sentiment"), predict, labels)])
    return {capability.name for capability in report.capabilities if capability.pass_rate < least}


def test_a_model_with_its_labels_swapped_is_found_out(sentiment_model: Engine) -> None:
    negative, positive = (sentiment_model.labels.index(name) for name in ("negative", "positive"))
    columns = list(range(len(sentiment_model.labels)))
    columns[negative], columns[positive] = positive, negative
    found = failed(lambda texts: sentiment_model.predict(texts)[:, columns], sentiment_model.labels, 0.75)
    assert found >= {*WITH_A_LABEL, "added sentiment"}


@pytest.mark.parametrize("answer", ["negative", "positive"])
def test_a_model_that_always_says_the_same_is_found_out(sentiment_model: Engine, answer: str) -> None:
    always = np.asarray([float(name == answer) for name in sentiment_model.labels])
    found = failed(lambda texts: np.tile(always, (len(texts), 1)), sentiment_model.labels, 0.8)
    assert found == WITH_A_LABEL


def test_a_model_that_guesses_is_found_out_everywhere() -> None:
    def guess(texts: Sequence[str]) -> np.ndarray:
        positive = np.asarray([zlib.crc32(text.encode()) % 2 for text in texts], dtype=np.float64)
        return np.stack([1 - positive, positive], axis=1)

    assert failed(guess, ("negative", "positive"), 0.8) == set(read_suite("sentiment").capabilities)
