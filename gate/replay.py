"""Computes a recorded decision again, from what it says that it rests on: was it right, and is it still whole?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.exit_codes import Unreachable
from gate.consistency import contradictions, unlike
from gate.decision import Decision, GateUsageError
from gate.evaluation import SCORING_VERSION
from gate.policy import Conclusion, judge_evidence
from serve_app.mlflow_client import redact

_OUTCOMES: Final = {
    "check": ("would_promote", "blocked"),
    "promote": ("promoted", "forced", "blocked"),
    "rollback": ("rolled_back", "blocked"),
    "prune": ("pruned", "would_prune"),
}

_MISTAKES: Final = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ImportError,
    ValueError,
)


class Replay(BaseModel):
    """What came of computing a decision again.

    ``recomputed``: None where no rule was applied, so that there is nothing to compute. ``differences``: what is not as
    recorded, in words. ``agrees``: whether there are none; None if there is nothing to compute either. ``taken``: what
    cannot be computed from the document and was taken as it is recorded.
    """

    model_config = ConfigDict(extra="forbid")

    decision_id: str | None
    recorded: str
    recomputed: str | None
    agrees: bool | None
    differences: list[str]
    taken: list[str]


def read_decision(address: str) -> Decision:
    """The decision document at a path or URL. Raises GateUsageError if it is none, Unreachable."""
    shown = redact(address) if "://" in address else address
    try:
        with fsspec.open(address, "rb") as file:
            content = file.read()
    except Exception as error:  # each storage has errors of its own
        if isinstance(error, _MISTAKES) and not _is_lost(error.__cause__):
            raise GateUsageError(f"{shown} cannot be read: {error}") from None
        raise Unreachable(f"{shown} cannot be reached: {error or type(error).__name__}") from error
    try:
        return Decision.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise GateUsageError(f"{shown} is not a decision of the gate: {where}: {first['msg']}; "
                             "expected the decision.json of a decision's run") from None  # fmt: skip


def _is_lost(cause: BaseException | None) -> bool:
    """Whether the server is not there or fails: to fsspec a file that it cannot ask for over HTTP is not found."""
    no_answer = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return no_answer or getattr(cause, "status", 0) >= 500


def replay(decision: Decision) -> Replay:
    """Computes every number that follows from others, then the verdict, and compares both with what is recorded."""
    verdict: str | None = None
    if decision.action in ("rollback", "prune"):
        differences = [*_without_rule(decision)]
    elif decision.evidence is None or decision.policy is None:
        missing = "evidence" if decision.evidence is None else "policy"
        differences = [f"the document has no {missing} to compute its verdict from"]
    else:
        conclusion = judge_evidence(decision.evidence, decision.policy, force=decision.force)
        passed = "would_promote" if decision.action == "check" else "promoted"
        verdict = passed if conclusion.outcome == "pass" else conclusion.outcome
        differences = [*contradictions(decision, decision.evidence), *_verdict(decision, verdict, conclusion)]
    differences += _what_happened(decision)
    if differences:
        differences = [*_of_another_version(decision), *differences]
    computed = verdict is not None or bool(differences)
    return Replay(
        decision_id=decision.decision_id,
        recorded=decision.decision,
        recomputed=verdict,
        agrees=not differences if computed else None,
        differences=differences,
        taken=_taken(decision),
    )


def _of_another_version(decision: Decision) -> Iterator[str]:
    """Why an untouched document may differ: what a score is has changed since."""
    score = decision.evidence.candidate if decision.evidence else None
    if score is not None and score.key.scoring_version != SCORING_VERSION:
        yield (f"scored by version {score.key.scoring_version} of the scoring code, and this is {SCORING_VERSION}, by "
               "which some numbers are others: replay it with the release that decided")  # fmt: skip


def _verdict(decision: Decision, verdict: str, conclusion: Conclusion) -> Iterator[str]:
    yield from unlike("decision", decision.decision, verdict)
    reason = conclusion.reason
    if decision.action == "promote" and not decision.changed and decision.reason.startswith(decision.already):
        reason = decision.already + reason
    yield from unlike("reason", decision.reason, reason)
    left = list(decision.checks)
    for check in conclusion.checks:
        recorded = next((each for each in left if each.name == check.name), None)
        yield from unlike(f"check {check.name}", recorded, check)
        if recorded is not None:
            left.remove(recorded)
    for each in left:
        yield f"check {each.name}: recorded, and does not follow from the evidence"
    if not left:
        yield from unlike("order of the checks", *([each.name for each in checks]
                                                   for checks in (decision.checks, conclusion.checks)))  # fmt: skip


def _without_rule(decision: Decision) -> Iterator[str]:
    for name in ("evidence", "policy", "checks"):
        if getattr(decision, name):
            yield f"{name}: recorded, and a {decision.action} has none"


def _what_happened(decision: Decision) -> Iterator[str]:
    """What must follow from the verdict, whatever it is."""
    if decision.decision not in _OUTCOMES[decision.action]:
        yield f"decision: a {decision.action} is never {decision.decision}"
    if decision.force and decision.action != "promote":
        yield f"force: a {decision.action} is never forced"
    if decision.force and not (decision.forced_reason or "").strip():
        yield "force: recorded without a reason"
    if decision.forced_reason is not None and decision.action in ("check", "prune"):
        yield f"forced_reason: a {decision.action} is given none"
    done = decision.decision in ("promoted", "forced", "rolled_back")
    if done and decision.model_version is None:
        yield f"version: none is recorded that was {decision.decision}"
    after = decision.model_version if done and decision.alias == "production" else decision.baseline_version
    yield from unlike("production version", decision.production_version, after)
    yield from unlike("changed", decision.changed, after != decision.baseline_version)


def _taken(decision: Decision) -> list[str]:
    evidence = decision.evidence
    if evidence is None:
        return []
    taken = [
        "what the registry said: the versions, which is in production, and whether one was rolled back",
        "digests, runs, names and times",
    ]
    if evidence.candidate is None:
        return taken
    taken += [
        "log loss with its interval, and the confidence in each calibration bin: they need every text's probabilities",
        "temperature, throughput, latencies and sizes",
    ]
    if evidence.comparison is None:
        taken.append("the candidate's slices: without a comparison their predictions are not recorded")
    else:
        taken.append("the ids of texts gained and lost, and which texts are in which slice")
    if evidence.behaviour is not None:
        taken.append("which behavioural cases failed")
    return taken
