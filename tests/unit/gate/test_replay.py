"""A recorded decision is computed again, and whatever was changed in it is found."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from configs.exit_codes import Unreachable
from configs.gate import GateConfig
from gate.__main__ import main
from gate.behaviour import BehaviourReport, Failure, SuiteReport, TestReport
from gate.decision import Decision, GateUsageError
from gate.decision_page import decision_page
from gate.evaluation import SCORING_VERSION
from gate.policy import Evidence, judge_evidence
from gate.replay import read_decision, replay
from gate.rule import NOT_ROLLED_BACK, Check
from tests.unit.gate.evidence import evidence
from tests.unit.gate.page_reader import PageReader


def _decided(found: Evidence, *, force: bool = False, **policy: Any) -> Decision:
    config = GateConfig(**policy)
    conclusion = judge_evidence(found, config, force=force)
    done = conclusion.outcome != "blocked"
    before = "1" if found.production_exists else None
    return Decision(
        decision="promoted" if conclusion.outcome == "pass" else conclusion.outcome, reason=conclusion.reason,
        action="promote", model_name="m", f1=found.candidate.f1 if found.candidate else None,
        baseline_f1=found.production.f1 if found.production else None, minimum_f1=config.minimum_f1,
        model_version="2" if done else None, baseline_version=before, production_version="2" if done else before,
        changed=done, test_digest="t", policy=config, evidence=found, checks=conclusion.checks, force=force,
        forced_reason="r" if force else None,
    )  # fmt: skip


def _evidence(candidate: float = 0.92, production: float | None = 0.9) -> Evidence:
    failure = Failure(text="not bad at all", expected="positive", found="negative 0.9")
    test = TestReport(
        capability="negation", type="MFT", description="denied", cases=9, failures=7, examples=[failure] * 3
    )
    suite = SuiteReport(name="sentiment", digest="d" * 64, tests=[test])
    more = {"behaviour": BehaviourReport.of([suite]), "production_version": "1" if production else None}
    return evidence(candidate, production).model_copy(update=more)


@cache
def _decision(candidate: float = 0.92, production: float | None = 0.9, **settings: Any) -> Decision:
    return _decided(_evidence(candidate, production), **settings)


def _unscored(fact: str) -> Decision:
    lost = Check(name=fact, passed=False, message="it does not load", overridable=fact == "production_score")
    found = _evidence()
    kept = [each for each in found.facts if each.name != fact]
    if fact == "candidate_score":
        kept = [each for each in kept if each.name == NOT_ROLLED_BACK]
        return _decided(Evidence(production_exists=True, facts=[lost, *kept]))
    gone: dict[str, Any] = {"production": None, "comparison": None, "production_speed": None, "facts": [lost, *kept]}
    return _decided(found.model_copy(update=gone))


@pytest.mark.parametrize(
    "decision",
    [
        _decision(), _decision(0.8), _decision(0.8, force=True), _decision(0.901, require_significant=True),
        _decision(0.92, None), _unscored("candidate_score"), _unscored("production_score"),
        _decision().model_copy(update={"alias": "challenger", "production_version": "1", "changed": False}),
        _decision().model_copy(update={"action": "check", "decision": "would_promote", "model_version": None,
                                       "production_version": "1", "changed": False}),
        _decision().model_copy(update={"model_version": "1", "production_version": "1", "changed": False,
                                       "reason": f"version 1 is already production; {_decision().reason}"}),
    ],
    ids=["promoted", "blocked", "forced", "insignificant", "first", "no score", "production without a score",
         "challenger", "check", "already production"],
)  # fmt: skip
def test_what_was_recorded_agrees(decision: Decision, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decision.json"
    file.write_text(decision.model_dump_json())
    found = replay(read_decision(str(file)))
    assert (found.agrees, found.differences) == (True, [])
    assert found.recorded == found.recomputed == decision.decision
    assert main(["replay", str(file)]) == 0
    assert "taken as recorded: what the registry said" in capsys.readouterr().out


def test_what_cannot_be_computed_is_named() -> None:
    assert any("log loss" in line for line in replay(_decision()).taken)
    assert not any("candidate's slices" in line for line in replay(_decision()).taken)
    assert any("candidate's slices" in line for line in replay(_decision(0.92, None)).taken)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for parent in parents:
            document = document[parent]
        document[last] = value

    return change


def _everywhere(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for each in changes:
            each(document)

    return change


def _without(path: str, name: str) -> Callable[[Any], None]:
    """Takes the entries of this name out of a list, and the check with it."""

    def change(document: Any) -> None:
        evidence = document["evidence"]
        evidence[path] = [each for each in evidence[path] if each["name"] != name]
        document["checks"] = [each for each in document["checks"] if each["name"] != name]

    return change


def _moved_bin(document: Any) -> None:
    """As many texts as before, and the same calibration error, in a bin that they are not sure enough for."""
    document["evidence"]["candidate"]["calibration"][0] |= {"low": 0.0, "high": 1 / 15}


def _fuller_bin(document: Any) -> None:
    """More texts in the only bin, which leaves the calibration error what it is."""
    document["evidence"]["candidate"]["calibration"][0]["texts"] *= 2


TAMPERED: dict[str, tuple[Callable[[Any], None], str]] = {
    "verdict": (_set("decision", "promoted"), "decision: recorded promoted, computed blocked"),
    "f1": (_set("f1", 0.99), "F1 of the candidate"),
    "f1 of the score": (_set("evidence.candidate.f1", 0.99), "f1 of the candidate from its confusion matrix"),
    "confusion": (_set("evidence.production.confusion.1.1", 1), "f1 of the production from its confusion matrix"),
    "interval": (_set("evidence.candidate.intervals.f1.low", 0.5), "f1 interval of the candidate"),
    "accuracy": (_set("evidence.candidate.accuracy", 0.99), "accuracy of the candidate"),
    "interval of the accuracy": (_set("evidence.candidate.intervals.accuracy.low", 0.9), "accuracy interval"),
    "log loss": (_set("evidence.candidate.log_loss", 0.01), "log loss of the candidate"),
    "texts": (_set("evidence.candidate.texts", 9000), "texts of the candidate"),
    "class": (_set("evidence.candidate.per_class.positive.recall", 1.0), "class positive of the candidate"),
    "class of production": (_set("evidence.production.per_class.negative.support", 3), "class negative of the prod"),
    "slice": (_set("evidence.candidate.slices.0.accuracy", 1.0), "slice half of the candidate"),
    "no slices": (_set("evidence.candidate.slices", []), "number of slices of the candidate"),
    "calibration error": (_set("evidence.candidate.ece", 0.0), "calibration error of the candidate"),
    "bin moved": (_moved_bin, "bin of the candidate from 0.000"),
    "bin fuller": (_fuller_bin, "texts in the bins of the candidate"),
    "accuracy of a bin": (_set("evidence.candidate.calibration.0.accuracy", 0.5), "right in the bins of the candidate"),
    "gained": (_set("evidence.comparison.gained", 5000), "comparison, gained"),
    "difference": (_set("evidence.comparison.whole.difference.low", 0.01), "comparison, whole"),
    "cells": (_set("evidence.comparison.whole.cells.0.3", 1), "confusion matrix of the candidate"),
    "cells of a slice": (_set("evidence.comparison.slices.0.cells.0.3", 900), "slice half: has texts"),
    "labels": (_set("evidence.comparison.labels", ["no", "positive"]), "comparison, labels"),
    "scored otherwise": (_set("evidence.production.key.precision", "bf16"), "what both scores depend on"),
    "another test split": (_set("evidence.production.key.test_digest", "u"), "what both scores depend on"),
    "digest": (_set("test_digest", "another"), "test split of the candidate"),
    "policy": (_set("policy.min_class_f1", 0.99), "check class_f1"),
    "minimum of the policy": (_set("policy.minimum_f1", 0.1), "minimum F1: recorded 0.85, computed 0.1"),
    "minimum": (_set("minimum_f1", 0.1), "minimum F1: recorded 0.1, computed 0.85"),
    "check": (_set("checks.0.passed", False), "check candidate_score"),
    "check too many": (lambda it: it["checks"].append(it["checks"][0] | {"name": "more"}), "check more"),
    "check twice": (lambda it: it["checks"].append(it["checks"][0]), "check candidate_score: recorded, and does not"),
    "checks turned": (lambda it: it["checks"].reverse(), "order of the checks"),
    "check missing": (lambda it: it["checks"].pop(), "recorded None"),
    "reason": (lambda it: it.update(reason="all is well, " + it["reason"]), "reason: recorded all is well"),
    "fact missing": (_without("facts", NOT_ROLLED_BACK), f"fact {NOT_ROLLED_BACK}: missing"),
    "fact of a score": (_set("evidence.facts.0.value", 0.99), "fact candidate_score"),
    "fact twice": (lambda it: it["evidence"]["facts"].append(it["evidence"]["facts"][0]), "there 2 times"),
    "fact made up": (_set("evidence.facts.1.name", "blessed"), "fact blessed: does not belong"),
    "comparison gone": (_set("evidence.comparison", None), "comparison: missing"),
    "speed gone": (_set("evidence.candidate_speed", None), "speed of the candidate: missing"),
    "behaviour gone": (_set("evidence.behaviour", None), "behavioural tests: missing"),
    "production version": (_set("production_version", "7"), "production version: recorded 7, computed 1"),
    "changed": (_set("changed", True), "changed: recorded True, computed False"),
    "examples gained": (_set("evidence.comparison.gained_examples", ["id-1"]), "examples of texts gained"),
    "examples lost": (lambda it: it["evidence"]["comparison"]["lost_examples"].pop(), "examples of texts lost"),
    "examples of failures": (_set("evidence.behaviour.suites.0.tests.0.examples", []), "examples of failures in sent"),
    "no suites": (_set("policy.behaviour_suites", []), "behavioural suites of the policy: recorded 0, computed 1"),
    "another suite": (_set("policy.behaviour_suites", ["topics"]), "behavioural suite of the policy: recorded topics"),
    "version before": (_set("baseline_version", "7"), "production version before: recorded 7, computed 1"),
    "reason of a check": (_everywhere(_set("action", "check"), _set("forced_reason", "r")), "a check is given none"),
    "first of all": (_set("baseline_version", None), "a production version"),
    "check by force": (_everywhere(_set("action", "check"), _set("force", True)), "force: a check is never forced"),
    "no evidence": (_set("evidence", None), "the document has no evidence"),
    "no policy": (_set("policy", None), "the document has no policy"),
    "another action": (_set("action", "rollback"), "evidence: recorded, and a rollback has none"),
    "no evidence and another action": (
        _everywhere(_set("evidence", None), _set("policy", None), _set("checks", []), _set("action", "rollback"),
                    _set("decision", "promoted")),
        "decision: a rollback is never promoted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_is_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = TAMPERED[name]
    document = json.loads(_decision(0.8).model_dump_json())
    change(document)
    file = tmp_path / "decision.json"
    file.write_text(json.dumps(document))
    found = replay(read_decision(str(file)))
    assert found.agrees is False
    assert any(words in difference for difference in found.differences), found.differences
    assert main(["replay", str(file)]) == 1
    assert words in capsys.readouterr().out


def test_another_version_before_a_forced_decision_is_found() -> None:
    """Where everything that follows from it is changed with it."""
    forced = _decision(0.8, force=True)
    assert forced.decision == "forced"
    assert replay(forced).agrees
    found = replay(forced.model_copy(update={"baseline_version": "7"}))
    assert found.differences == ["production version before: recorded 7, computed 1"]


def test_a_document_of_an_earlier_release_has_no_version_before() -> None:
    before = _decision().evidence
    assert before is not None
    earlier = before.model_copy(update={"production_version": None})
    assert replay(_decision().model_copy(update={"evidence": earlier})).agrees


def test_a_document_of_other_scoring_code_says_so_if_it_differs() -> None:
    document = json.loads(_decision(0.8).model_dump_json())
    for side in ("candidate", "production"):
        document["evidence"][side]["key"]["scoring_version"] = "4"
    older = Decision.model_validate(document)
    assert replay(older).agrees
    document["f1"] = 0.1
    found = replay(Decision.model_validate(document))
    assert found.agrees is False
    assert f"version 4 of the scoring code, and this is {SCORING_VERSION}" in found.differences[0]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("evidence.candidate.confusion", [[1, 2]]), "evidence.candidate"),
        (_set("evidence.candidate.confusion.0.0", -5), "evidence.candidate.confusion.0.0"),
        (_set("evidence.candidate.confusion.0.0", 2**70), "evidence.candidate.confusion.0.0"),
        (_set("evidence.candidate.confusion", [[0, 0], [0, 0]]), "evidence.candidate"),
        (_set("evidence.candidate.per_class", {}), "evidence.candidate"),
        (_set("evidence.candidate.intervals", {}), "evidence.candidate"),
        (_set("evidence.candidate.labels", ["a", "b"]), "evidence.candidate"),
        (_set("evidence.candidate.calibration", []), "evidence.candidate.calibration"),
        (_set("evidence.candidate.key.f1_definition", "best"), "evidence.candidate"),
        (_set("evidence.comparison.whole.cells", []), "evidence.comparison.whole.cells"),
        (_set("evidence.comparison.whole.cells.0.1", 2), "evidence.comparison"),
        (_set("evidence.comparison.slices.0.cells.0.3", 0), "evidence.comparison.slices.0.cells.0.3"),
        (_set("evidence.comparison.f1_definition", "binary:other"), "evidence.comparison"),
        (_set("evidence.production_speed.latency_ms", 0.0), "evidence.production_speed.latency_ms"),
        (lambda it: it["evidence"]["comparison"]["whole"]["cells"].reverse(), "evidence.comparison"),
        (_set("f1", float("nan")), "f1"),
        (_set("checks.0.value", float("inf")), "checks.0.value"),
    ],
)
def test_numbers_that_none_can_have_are_refused(
    change: Callable[[Any], None], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(_decision(0.8).model_dump_json())
    change(document)
    file = tmp_path / "decision.json"
    file.write_text(json.dumps(document))
    with pytest.raises(GateUsageError, match=f"is not a decision of the gate: {re.escape(field)}"):
        read_decision(str(file))
    assert main(["replay", str(file)]) == 2
    assert "is not a decision" in capsys.readouterr().err


def test_the_page_of_a_document_is_written_with_what_does_not_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "decision.json", tmp_path / "decision.html"
    file.write_text(_decision().model_dump_json())
    assert main(["replay", str(file), "--html", str(page)]) == 0
    assert page.read_text() == decision_page(_decision())
    file.write_text(_decision().model_copy(update={"reason": "<b>trust me</b>"}).model_dump_json())
    assert main(["replay", str(file), "--html", str(page)]) == 1
    text = PageReader(page.read_text()).text
    assert "does not follow from its evidence: reason: recorded <b>trust me</b>, computed F1" in text
    assert main(["replay", str(file), "--html", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "--html" in capsys.readouterr().err


@pytest.mark.parametrize(("action", "outcome"), [("rollback", "rolled_back"), ("prune", "pruned")])
def test_where_no_rule_is_applied_there_is_nothing_to_compute(
    action: Any, outcome: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = "1" if action == "rollback" else "2"
    decision = Decision(decision=outcome, reason="r", action=action, model_name="m", model_version="1",
                        baseline_version="2", production_version=after, changed=after != "2")  # fmt: skip
    found = replay(decision)
    assert (found.agrees, found.recomputed, found.differences) == (None, None, [])
    file = tmp_path / "decision.json"
    file.write_text(decision.model_dump_json())
    assert main(["replay", str(file)]) == 0
    assert f"nothing to compute: a {action} applies no rule" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"decision": "maybe"}', "\udcff"])
def test_what_is_no_decision_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decision.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(GateUsageError, match="is not a decision"):
        read_decision(str(file))
    assert main(["replay", str(file)]) == 2
    assert main(["replay", str(tmp_path / "nowhere.json")]) == 2
    assert main(["replay", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


class _Failing(fsspec.AbstractFileSystem):
    """A storage that fails as its path says."""

    protocol = "failing"
    cachable = False

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        raise {"forbidden": PermissionError, "gone": OSError, "lost": RuntimeError}[path.rpartition("/")[2]]("no")


class _Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path is."""

    def do_GET(self) -> None:
        self.send_error(int(self.path[1:]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def _server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_that_cannot_be_reached_is_no_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    fsspec.register_implementation("failing", _Failing, clobber=True)
    for name in ("gone", "lost"):
        with pytest.raises(Unreachable, match=f"failing://host/{name} cannot be reached: no"):
            read_decision(f"failing://user:secret@host/{name}")
        assert main(["replay", f"failing://host/{name}"]) == 4
    assert main(["replay", "failing://host/forbidden"]) == 2
    with _server() as address:
        assert main(["replay", f"{address}/404"]) == 2
        assert main(["replay", f"{address}/500"]) == 4
    assert main(["replay", f"{address}/404"]) == 4  # nobody listens any more
    assert f"{address}/404 cannot be reached" in capsys.readouterr().err
