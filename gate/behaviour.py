"""Behavioural tests of a model: suites (``gate.suite``) run on its predictions, reported per capability.

They say what an F1 on a test split cannot: whether "not bad at all" is praise, and whether a typo turns a verdict
round. By default they inform; ``gate.min_behaviour`` sets least pass rates that block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gate.rule import Check
from gate.suite import Case, Invariance, MinimumFunctionality, Suite, Test

Predict = Callable[[Sequence[str]], np.ndarray]

EXAMPLES = 3  # failing cases that a report shows of each test


class BehaviourError(ValueError):
    """Predictions that no test can be judged by; the message says what was found and expected."""


class Classifier(Protocol):
    """What is tested: ``serve_app.inference.engine.Engine`` is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities, float [texts, classes]."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Failure(_Record):
    """A case that failed. ``expected`` and ``found`` in words, with probabilities."""

    text: str
    changed: str | None = None
    expected: str
    found: str


class TestReport(_Record):
    """One test of a suite. ``failures``: cases that failed, count; ``examples``: a few of them."""

    __test__ = False  # its name makes pytest look

    capability: str
    type: Literal["MFT", "INV", "DIR"]
    description: str
    cases: int = Field(ge=1)
    failures: int = Field(ge=0)
    examples: list[Failure]


class SuiteReport(_Record):
    """One suite. ``digest``: SHA-256 of its file. ``not_applicable``: why it was not run; then there are no tests."""

    name: str
    digest: str
    not_applicable: str | None = None
    tests: list[TestReport]


class Capability(_Record):
    """The tests of one capability, of all suites together. ``pass_rate``: 0 to 1."""

    name: str
    cases: int
    failures: int
    pass_rate: float


class BehaviourReport(_Record):
    """All suites, and their sums by capability, which must be the sums: a report that contradicts itself is refused."""

    suites: list[SuiteReport]
    capabilities: list[Capability]

    @classmethod
    def of(cls, suites: Sequence[SuiteReport]) -> BehaviourReport:
        """The report of some suites."""
        return cls(suites=list(suites), capabilities=_by_capability(suites))

    @model_validator(mode="after")
    def _sums_agree(self) -> BehaviourReport:
        if self.capabilities != _by_capability(self.suites):
            raise ValueError("capabilities are not the sums of the tests: the report was changed")
        return self


def behaviour_of(model: Classifier, suites: Sequence[Suite]) -> BehaviourReport:
    """Runs ``suites`` on ``model``. Raises BehaviourError for output that is not finite."""
    return BehaviourReport.of([run_suite(suite, model.predict, model.labels) for suite in suites])


def run_suite(suite: Suite, predict: Predict, labels: Sequence[str]) -> SuiteReport:
    """Runs one suite on ``predict`` (texts to probabilities [texts, classes] in the order of ``labels``), which is
    called once, with every text of the suite once.

    A suite about labels that the model does not have is not run, and the report says so. Raises BehaviourError.
    """
    missing = [label for label in suite.labels if label not in labels]
    if missing:
        reason = f"it is about {', '.join(suite.labels)}, and the model has {', '.join(labels)}"
        return SuiteReport(name=suite.name, digest=suite.digest, not_applicable=reason, tests=[])
    texts = list(
        dict.fromkeys(text for _, cases in suite.tests for case in cases for text in (case.text, case.changed) if text)
    )
    probabilities = np.asarray(predict(texts), dtype=np.float64)
    if probabilities.shape != (len(texts), len(labels)):
        raise BehaviourError(
            f"suite {suite.name}: expected probabilities {[len(texts), len(labels)]}, found {list(probabilities.shape)}"
        )
    broken = ~np.isfinite(probabilities).all(axis=1)
    if broken.any():
        raise BehaviourError(
            f"suite {suite.name}: the model's output is not finite for {broken.sum()} of {len(texts)} texts, "
            f"first '{texts[int(broken.argmax())]}'"
        )
    judge = _Judge(dict(zip(texts, probabilities, strict=True)), labels)
    return SuiteReport(name=suite.name, digest=suite.digest, tests=[judge.report(*test) for test in suite.tests])


def behaviour_checks(report: BehaviourReport, minima: Mapping[str, float]) -> list[Check]:
    """The report against least pass rates by capability, which block; beside them, for every suite, a check that does
    not, saying how it went or why it was not run. A capability that no suite tested fails."""
    checks = []
    for suite in report.suites:
        cases = sum(test.cases for test in suite.tests)
        passed = cases - sum(test.failures for test in suite.tests)
        applies = suite.not_applicable is None
        message = f"{passed} of {cases} cases passed" if applies else f"does not apply: {suite.not_applicable}"
        checks.append(
            Check(
                name=f"behaviour_suite: {suite.name}",
                passed=applies,
                message=message,
                value=passed / cases if cases else None,
                blocking=False,
            )
        )
    tested = {capability.name: capability for capability in report.capabilities}
    for name, minimum in minima.items():
        found = tested.get(name)
        rate = found.pass_rate if found else None
        if found is None:
            message = (
                f"gate.min_behaviour asks for {name}, which no suite tested; tested: {', '.join(tested) or 'nothing'}"
            )
        else:
            message = (
                f"{name}: {found.cases - found.failures} of {found.cases} cases passed ({found.pass_rate:.3f}); "
                f"at least {minimum:g} is required"
            )
        passes = rate is not None and rate >= minimum
        checks.append(Check(name=f"behaviour: {name}", passed=passes, message=message, value=rate, limit=minimum))
    return checks


def behaviour_lines(report: BehaviourReport, minima: Mapping[str, float] | None = None) -> list[str]:
    """The report as a table for a terminal: capabilities in the order of the suites, and what was not run."""
    minima = minima or {}
    width = max([len("capability"), *(len(capability.name) for capability in report.capabilities)])
    lines = []
    if report.capabilities:
        lines.append(f"{'capability':{width}}  cases  failed  pass rate" + ("  least" if minima else ""))
    for capability in report.capabilities:
        least = minima.get(capability.name)
        lines.append(
            f"{capability.name:{width}}  {capability.cases:5}  {capability.failures:6}  {capability.pass_rate:9.3f}"
            + (f"  {least:5.2f}" if least is not None else "")
        )
    lines += [
        f"suite {suite.name} does not apply: {suite.not_applicable}" for suite in report.suites if suite.not_applicable
    ]
    return lines


def _by_capability(suites: Sequence[SuiteReport]) -> list[Capability]:
    counts: dict[str, tuple[int, int]] = {}
    for test in (test for suite in suites for test in suite.tests):
        cases, failures = counts.get(test.capability, (0, 0))
        counts[test.capability] = cases + test.cases, failures + test.failures
    return [
        Capability(name=name, cases=cases, failures=failures, pass_rate=(cases - failures) / cases)
        for name, (cases, failures) in counts.items()
    ]


class _Judge:
    """Judges cases by the probabilities of their texts, float64 [classes] each."""

    def __init__(self, probabilities: Mapping[str, np.ndarray], labels: Sequence[str]) -> None:
        self._probabilities, self._labels = probabilities, labels

    def report(self, test: Test, cases: Sequence[Case]) -> TestReport:
        failures = [failure for case in cases if (failure := self._failure(test, case))]
        return TestReport(
            capability=test.capability,
            type=test.type,
            description=test.description,
            cases=len(cases),
            failures=len(failures),
            examples=failures[:EXAMPLES],
        )

    def _failure(self, test: Test, case: Case) -> Failure | None:
        """What is wrong with the predictions of ``case``; None when they are as expected."""
        before = self._probabilities[case.text]
        if isinstance(test, MinimumFunctionality):
            assert case.expected is not None
            if self._label(before) == case.expected:
                return None
            return Failure(text=case.text, expected=case.expected, found=self._shown(before))
        assert case.changed is not None
        after = self._probabilities[case.changed]
        if isinstance(test, Invariance):
            moved = float(np.abs(after - before).max())
            too_far = test.tolerance is not None and moved > test.tolerance
            if self._label(after) == self._label(before) and not too_far:
                return None
            expected = f"{self._shown(before)} as before" + (f", within {test.tolerance:g}" if too_far else "")
            return Failure(text=case.text, changed=case.changed, expected=expected, found=self._shown(after))
        column = self._labels.index(test.toward)
        start, end = float(before[column]), float(after[column])
        if end - start >= test.min_change:
            return None
        expected = f"{test.toward} at least {max(0.0, start + test.min_change):.3f}, from {start:.3f}"
        return Failure(text=case.text, changed=case.changed, expected=expected, found=f"{test.toward} {end:.3f}")

    def _label(self, probabilities: np.ndarray) -> str:
        return self._labels[int(probabilities.argmax())]

    def _shown(self, probabilities: np.ndarray) -> str:
        return f"{self._label(probabilities)} {probabilities.max():.3f}"
