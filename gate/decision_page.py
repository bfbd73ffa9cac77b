"""The page of a decision: one self-contained HTML document that says what was decided, on what, and how sure it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gate.behaviour import BehaviourReport, Failure, TestReport
from gate.comparison import Comparison
from gate.decision import Decision
from gate.evaluation import ClassScore, Score
from gate.pages import Scale, digits_to_tell, render, worst_first
from gate.policy import Evidence
from gate.rule import RULE, Check
from gate.statistics import Interval

_FAILURES: Final = 5  # failing examples on the page; decision.json has more
_IDS: Final = 5


@dataclass(frozen=True)
class Verdict:
    """The head of the page. ``tone``: good, warning, bad, back, beside or quiet, which says the colour."""

    word: str
    tone: str
    headline: str


@dataclass(frozen=True)
class Side:
    """Candidate or production. ``f1``: with its interval if there is one."""

    name: str
    value: float
    f1: Interval | None
    score: Score | None


def decision_page(decision: Decision, differences: Sequence[str] = ()) -> str:
    """The page of ``decision``, of any kind and with or without evidence. Needs no network and no script.

    ``differences``: what a replay found that is not as recorded, which stands before everything else.
    """
    evidence = decision.evidence or Evidence(production_exists=decision.baseline_version is not None)
    sides = _sides(decision, evidence)
    digits = digits_to_tell(decision.f1, decision.baseline_f1)
    return render(
        "decision.html",
        title=f"{decision.action} {decision.model_name}: {verdict(decision).word.lower()}",
        decision=decision,
        differences=differences,
        evidence=evidence,
        verdict=verdict(decision),
        facts=_facts(decision),
        rule=next((check for check in decision.checks if check.name == RULE), None),
        sides=sides,
        digits=digits,
        f1_scale=_f1_scale(sides, decision) if sides else None,
        checks=[(mark(check), check) for check in decision.checks],
        comparison=_compared(evidence.comparison) if evidence.comparison else None,
        slices=_slices(evidence.candidate) if evidence.candidate and not evidence.comparison else None,
        classes=_classes(evidence.candidate) if evidence.candidate else None,
        examples=_failing_examples(evidence.behaviour) if evidence.behaviour else [],
        minima=decision.policy.min_behaviour if decision.policy else {},
        digests=_digests(decision, evidence),
        policy=decision.policy.model_dump(mode="json", exclude_defaults=True) if decision.policy else None,
        commands=_commands(decision),
    )


def verdict(decision: Decision) -> Verdict:
    """What happened, in a word and a sentence."""
    now, was, model = decision.model_version, decision.baseline_version, decision.model_name
    stays = f"version {was} stays in production" if was else "there is still no production model"
    removed = f"{len(decision.versions)} version{'' if len(decision.versions) == 1 else 's'} of {model}"
    match decision.decision:
        case "blocked" if decision.action == "rollback":
            return Verdict("Blocked", "bad", f"Production did not go back: {stays}.")
        case "blocked":
            return Verdict("Blocked", "bad", f"The candidate was not promoted: {stays}.")
        case "would_promote":
            return Verdict("Would be promoted", "quiet", f"A check that changed nothing: {stays}.")
        case "rolled_back" if now == was:
            return Verdict("Rolled back", "quiet", f"Version {now} of {model} was in production already.")
        case "rolled_back":
            left = f"from version {was} " if was else ""
            return Verdict("Rolled back", "back", f"Production of {model} went back {left}to version {now}.")
        case "would_prune":
            return Verdict("Would be pruned", "quiet", f"A dry run: {removed} would be removed.")
        case "pruned":
            return Verdict("Pruned", "quiet", f"{removed[0].upper()}{removed[1:]} were removed for good.")
        case "forced" if decision.alias == "production" and now == was:
            return Verdict("Promoted by force", "quiet", f"Version {now} of {model} was in production already.")
        case "forced" if decision.alias == "challenger":
            return Verdict("Challenger by force", "warning", f"Version {now} of {model} is the challenger against the "
                           f"gate's verdict; {stays}.")  # fmt: skip
        case "forced":
            return Verdict("Promoted by force", "warning", f"Version {now} of {model} is in production against the "
                           "gate's verdict.")  # fmt: skip
        case "promoted" if decision.alias == "challenger":
            return Verdict("Challenger", "beside", f"Version {now} of {model} passed the gate; {stays}.")
        case _ if now == was:
            return Verdict("Promoted", "quiet", f"Version {now} of {model} was in production already.")
    return Verdict("Promoted", "good", f"Version {now} of {model} is in production.")


def mark(check: Check) -> str:
    """``ok``, ``failed``, ``overridden`` or, for a check that cannot block, ``info``."""
    if not check.blocking:
        return "info"
    return "ok" if check.passed else "overridden" if check.forced else "failed"


def _facts(decision: Decision) -> list[tuple[str, str, bool]]:
    """Name, value, and whether the value is an identifier."""
    candidate = f"version {decision.model_version}" if decision.model_version else "not registered"
    was, now = decision.baseline_version, decision.production_version
    before, after = (f"version {version}" if version else "none" for version in (was, now))
    score = decision.evidence.candidate if decision.evidence else None
    facts: list[tuple[str, str | None, bool]] = [
        ("Model", decision.model_name, False),
        ("Candidate" if decision.action != "rollback" else "Back to", candidate, False),
        ("Production", f"{before}, as before" if was == now else f"{before} → {after}", False),
        ("By", decision.decided_by, False),
        ("Test texts", f"{score.texts:,}" if score else None, False),
        ("Candidate's run", decision.run_id, True),
        ("Its search", decision.parent_run_id, True),
        ("Recorded as run", decision.decision_id, True),
    ]
    if decision.action == "prune":
        facts[1] = ("Removed", ", ".join(decision.versions) or "nothing", False)
    return [(name, value, is_id) for name, value, is_id in facts if value]


def _sides(decision: Decision, evidence: Evidence) -> list[Side]:
    """What the two F1s are known of. A rollback compares nothing: its F1s may be of two test splits."""
    if decision.action == "rollback":
        return []
    found = [("candidate", decision.f1, evidence.candidate), ("production", decision.baseline_f1, evidence.production)]
    return [
        Side(name, f1, score.intervals["f1"] if score else None, score) for name, f1, score in found if f1 is not None
    ]


def _f1_scale(sides: Sequence[Side], decision: Decision) -> Scale:
    ends = [end for side in sides if side.f1 for end in (side.f1.low, side.f1.high)]
    least = [] if decision.baseline_version or decision.minimum_f1 is None else [decision.minimum_f1]
    return Scale.over([*ends, *least, *(side.value for side in sides)])


def _compared(comparison: Comparison) -> dict[str, Any]:
    """The paired comparison: rows of the forest plot, their scale, and the table of who is right."""
    shown, rest = worst_first(comparison.slices, lambda each: each.production_f1 - each.candidate_f1)
    rows = [comparison.whole, *shown]
    both = sum(texts for true, before, after, texts in comparison.whole.cells if before == true == after)
    return {
        "found": comparison,
        "scale": Scale.around_zero(end for row in rows for end in (row.difference.low, row.difference.high)),
        "rows": [(tone(row.difference), row) for row in rows],
        "rest": [(tone(row.difference), row) for row in rest],
        "both": both,
        "neither": comparison.whole.texts - both - comparison.gained - comparison.lost,
        "gained": comparison.gained_examples[:_IDS],
        "lost": comparison.lost_examples[:_IDS],
    }


def tone(difference: Interval) -> str:
    """``better`` or ``worse`` if the interval leaves out zero, else ``unsure``."""
    return "better" if difference.low > 0.0 else "worse" if difference.high < 0.0 else "unsure"


def _slices(score: Score) -> dict[str, Any]:
    shown, rest = worst_first(score.slices, lambda each: -each.f1.value)
    return {"scale": _scale_of([row.f1 for row in [*shown, *rest]]), "rows": shown, "rest": rest}


def _classes(score: Score) -> dict[str, Any]:
    rows: list[tuple[str, ClassScore]] = list(score.per_class.items())
    shown, rest = worst_first(rows, lambda row: -row[1].f1)
    return {"scale": _scale_of([row.f1_interval for _, row in rows]), "rows": shown, "rest": rest}


def _scale_of(intervals: Sequence[Interval]) -> Scale:
    return Scale.over([end for found in intervals for end in (found.low, found.value, found.high)] or [0.0, 1.0])


def _failing_examples(report: BehaviourReport) -> list[tuple[TestReport, Failure]]:
    """One of each failing test, those that fail most often first."""
    tests = [test for suite in report.suites for test in suite.tests if test.examples]
    tests.sort(key=lambda test: test.failures / test.cases, reverse=True)
    return [(test, test.examples[0]) for test in tests[:_FAILURES]]


def _digests(decision: Decision, evidence: Evidence) -> list[tuple[str, str]]:
    """What the decision rests on, so that anybody can tell whether it is still the same."""
    found = [("Test split", decision.test_digest), ("Search settings", decision.config_digest)]
    for name, score in (("candidate", evidence.candidate), ("production", evidence.production)):
        found.append((f"Weights, {name}", score.key.weights_digest if score else None))
    if evidence.behaviour:
        found += [(f"Suite {suite.name}", suite.digest) for suite in evidence.behaviour.suites]
    if evidence.candidate:
        key = evidence.candidate.key
        scored = f"scoring version {key.scoring_version}, precision {key.precision}, on {key.device_type}"
        found.append(("Scored with", f"{scored}, {key.f1_definition}"))
    return [(name, value) for name, value in found if value]


def _commands(decision: Decision) -> list[tuple[str, str]]:
    """What one may want to do next, and the command for it."""
    model = f"--model-name {shlex.quote(decision.model_name)}"
    found = []
    if decision.evidence is not None:
        found.append(("Compute the verdict again", "python -m gate replay decision.json"))
    found.append(("What is in production", f"python -m gate status {model}"))
    if decision.model_version and decision.action == "promote" and decision.passed:
        found.append(("The version's model card", f"python -m gate card --version {decision.model_version} {model}"))
    if decision.changed:
        found.append(("Go back", f"python -m gate rollback {model} --reason TEXT"))
    elif decision.action == "check" and decision.passed:
        found.append(("Promote it", f"python -m gate promote {_which(decision)} {model}"))
    elif (
        decision.decision == "blocked"
        and all(check.passed or check.overridable for check in decision.checks)
        and (decision.action != "rollback")
    ):
        found.append(
            ("Override, if you must", f"python -m gate promote {_which(decision)} {model} --force --reason TEXT")
        )
    return found


def _which(decision: Decision) -> str:
    return f"--run-id {decision.run_id}" if decision.run_id else f"--version {decision.model_version}"
