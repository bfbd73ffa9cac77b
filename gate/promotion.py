"""What the gate does: check, promote, roll back, and tell how things stand.

Scoring takes minutes and needs nobody to wait, so it comes before the lease of the model (``gate.lease``). If anything
that the decision rests on is found changed with the lease held, the lease is given back and the decision made again;
else it is carried out (``gate.carry_out``).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from configs.schema import Settings
from gate import audit, registry
from gate.candidates import Candidate, find_candidate
from gate.carry_out import carry_out, record, repair, settle_interrupted
from gate.decision import Decision, GateUsageError
from gate.judgement import Judge, Judgement
from gate.lease import Lease
from gate.permissions import require_right_to_change
from serve_app import mlflow_client as names
from serve_app.mlflow_client import CHALLENGER, PREVIOUS, PRODUCTION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

TURNS_GIVEN_BACK: Final = 2  # by a promotion that finds the registry changed, before it keeps one


def check(
    client: MlflowClient,
    settings: Settings | None = None,
    run_id: str | None = None,
    version: str | None = None,
    *,
    candidate: Candidate | None = None,
) -> Decision:
    """The decision that ``promote`` would come to. Stores scores that it had to compute and changes nothing else.

    The candidate is a trial's or search's run, or a registered version (then ``settings`` name the model).
    ``settings``: default are those of the candidate's search. Raises GateUsageError, TrackingUnavailable.
    """
    candidate, settings = _resolve(client, settings, run_id, version, candidate)
    state = registry.state(client, settings.tracking.model_name)
    registry.refuse_foreign(client, state.name, state)
    with tempfile.TemporaryDirectory(prefix="trialgate-gate-") as folder:
        return Judge(client, candidate, settings, Path(folder)).judge(state, "check").decision


def promote(
    client: MlflowClient,
    settings: Settings | None = None,
    run_id: str | None = None,
    version: str | None = None,
    *,
    candidate: Candidate | None = None,
    alias: Literal["production", "challenger"] = "production",
    force: bool = False,
    reason: str | None = None,
) -> Decision:
    """Decides, and if the candidate passes registers it (unless a version has its weights) and gives it the alias.

    As ``challenger`` it must pass the same rule, and production stays as it is. A decision, blocked ones too, is
    recorded as a run of its own and on the candidate's run. ``force`` (with a ``reason``) overrides a verdict or a
    production model that cannot be scored, never a candidate without a score. What has the alias already keeps it, and
    nothing is recorded. Raises as ``check`` does, and as ``Lease``.
    """
    if force and not (reason or "").strip():
        raise GateUsageError("--force needs a reason for the record: add --reason TEXT")
    repair(client)
    candidate, settings = _resolve(client, settings, run_id, version, candidate)
    name = settings.tracking.model_name
    state = registry.state(client, name)
    registry.refuse_foreign(client, name, state)
    # A version may have a mark or the alias challenger to be taken from it.
    require_right_to_change(client, name, candidate.run_id, removes=force or candidate.version is not None)
    with tempfile.TemporaryDirectory(prefix="trialgate-gate-") as folder:
        judge = Judge(client, candidate, settings, Path(folder))

        def judged(now: registry.State) -> Judgement:
            judgement = judge.judge(now, "promote", force=force)
            judgement.decision = judgement.decision.model_copy(update={"alias": alias, "forced_reason": reason})
            return judgement

        return _in_turn(client, candidate, judged(state), judged)


def _in_turn(
    client: MlflowClient, candidate: Candidate, judgement: Judgement, judged: Callable[[registry.State], Judgement]
) -> Decision:
    """Carries ``judgement`` out with the lease held and the registry as it was judged, or records what came of it.

    Whoever finds it changed gives the lease back and judges again, so that nobody waits for that. Others might be
    faster each time, so the last turn is kept until it is judged.
    """
    for keeps_turn in [False] * TURNS_GIVEN_BACK + [True]:
        if not _acts(judgement):
            break
        name = judgement.state.name
        with Lease(client, name, f"the promotion of {candidate.what} by {audit.who()}") as lease:
            settle_interrupted(client, lease)
            now = registry.state(client, name)
            if now != judgement.state:
                logger.info("model %s has changed since %s was judged: it is judged again", name, candidate.what)
                if keeps_turn:
                    judgement = judged(now)
            if now == judgement.state and _acts(judgement):
                return _carried_out(client, lease, candidate, judgement)
        if now != judgement.state:
            judgement = judged(now)
    decision = judgement.decision
    return record(client, decision) if decision.decision == "blocked" else _unchanged(decision)


def _carried_out(client: MlflowClient, lease: Lease, candidate: Candidate, judgement: Judgement) -> Decision:
    return carry_out(
        client,
        lease,
        judgement.decision,
        experiment_id=candidate.experiment_id,
        register=lambda decision_id: _register(client, decision_id, candidate, judgement),
    )


def rollback(
    client: MlflowClient,
    model_name: str,
    to: str | None = None,
    reason: str | None = None,
    *,
    only_from: str | None = None,
) -> Decision:
    """Production goes back to ``to`` (default: the latest earlier production version that was not rolled back).

    Only to a version that was in production and was not itself rolled back; the one that is left is marked rolled
    back. Without such a version, or when production is not ``only_from`` (None: whatever it is), the decision is
    blocked. Raises GateUsageError, TrackingUnavailable, and as ``Lease``.
    """
    repair(client)
    registry.refuse_foreign(client, model_name)
    require_right_to_change(client, model_name, removes=True)
    to = None if to is None else str(to)
    decision = _decide_rollback(client, model_name, to, reason, only_from)
    if _goes_back(decision):
        with Lease(client, model_name, f"a rollback by {audit.who()}") as lease:
            settle_interrupted(client, lease)
            decision = _decide_rollback(client, model_name, to, reason, only_from)
            if _goes_back(decision):
                return carry_out(client, lease, decision)
    if decision.decision == "blocked" and registry.find_model(client, model_name) is not None:
        return record(client, decision)
    return decision  # nothing to do, or a model that never was: it has no history


def _goes_back(decision: Decision) -> bool:
    return decision.decision == "rolled_back" and decision.model_version != decision.baseline_version


def _decide_rollback(
    client: MlflowClient, model_name: str, to: str | None, reason: str | None, only_from: str | None
) -> Decision:
    left = registry.aliases(client, model_name).get(PRODUCTION)  # its version may be gone, which is a reason to go back
    decision = Decision(decision="blocked", reason="", action="rollback", model_name=model_name,
                        baseline_version=left, production_version=left, forced_reason=reason)  # fmt: skip
    if only_from is not None and only_from != left:
        found = f"version {left}" if left else "no version"
        return decision.model_copy(update={
            "reason": f"{found} is production, and only version {only_from} was to be left (--only-from)",
        })  # fmt: skip
    if to is not None and to == left:
        return decision.model_copy(update={
            "decision": "rolled_back", "reason": f"version {to} is already production", "model_version": to,
        })  # fmt: skip
    target, problem = _rollback_target(client, model_name, left, to)
    if target is not None:
        current = None if left is None else registry.get_version(client, model_name, left)
        decision = decision.model_copy(
            update={
                "model_version": str(target.version),
                "run_id": target.run_id or None,
                "f1": _number(target.tags.get(names.VERSION_F1)),
                "baseline_f1": _number(current.tags.get(names.VERSION_F1)) if current else None,
                "left_weights_digest": current.tags.get(names.WEIGHTS_DIGEST) if current else None,
                "test_digest": target.tags.get(names.TEST_DIGEST),
            }
        )
    if target is None or problem:
        return decision.model_copy(update={"reason": problem})
    what = f"from version {left}" if left else "from no production version"
    what = f"{what} to version {target.version}" + (f": {reason}" if reason else "")
    return decision.model_copy(update={"decision": "rolled_back", "reason": what})


def _rollback_target(
    client: MlflowClient, model_name: str, left: str | None, to: str | None
) -> tuple[ModelVersion | None, str]:
    """The version to go back to, and what speaks against it (empty: nothing)."""
    if to is None:
        target = registry.best_previous(client, model_name, left)
        if target is not None:
            return target, ""
        earlier = "version that was in production" if left is None else "earlier production version"
        return None, f"nothing to go back to: no {earlier} of '{model_name}' is left that was not rolled back"
    target = registry.get_version(client, model_name, to)
    if target is None:
        raise GateUsageError(
            f"version '{to}' of model '{model_name}' does not exist; there are: "
            f"{_listed(registry.versions(client, model_name))}"
        )
    if names.ROLLED_BACK in target.tags:
        return target, (
            f"version {to} was itself rolled back: promote it with "
            f"python -m gate promote --version {to} --force --reason TEXT"
        )
    if names.PRODUCTION_SINCE not in target.tags:
        return target, f"version {to} was never in production: promote it with python -m gate promote --version {to}"
    return target, ""


def status(client: MlflowClient, model_name: str) -> dict[str, Any]:
    """What is in production, what was before, what challenges it, and every decision, newest first. Repairs first what
    needs no waiting."""
    repair(client, wait_s=0.0)
    held = {alias: registry.aliased(client, model_name, alias) for alias in (PRODUCTION, PREVIOUS, CHALLENGER)}
    there = registry.find_model(client, model_name) is not None
    return {
        "model_name": model_name,
        **{f"{alias}_version": str(version.version) if version else None for alias, version in held.items()},
        **{alias: _described(version) for alias, version in held.items()},
        "versions": [_described(version) for version in registry.versions(client, model_name)] if there else [],
        "decisions": audit.history(client, model_name),
    }


def _acts(judgement: Judgement) -> bool:
    """Whether anything is to be done: it passes, and is not yet what it was meant to become. UsageError: a challenger
    that is production."""
    decision, aliases = judgement.decision, judgement.state.aliases
    version = decision.model_version
    if decision.decision == "blocked":
        return False
    if version is not None and decision.alias == CHALLENGER and version == decision.baseline_version:
        raise GateUsageError(f"version {version} is production, so it cannot be the challenger of production too")
    return version is None or aliases.get(decision.alias) != version


def _unchanged(decision: Decision) -> Decision:
    return decision.model_copy(update={"reason": decision.already + decision.reason})


def _resolve(
    client: MlflowClient,
    settings: Settings | None,
    run_id: str | None,
    version: str | None,
    candidate: Candidate | None,
) -> tuple[Candidate, Settings]:
    if candidate is None:
        name = settings.tracking.model_name if settings else None
        if version is not None and name is None:
            raise GateUsageError(f"version {version} of which model? Give the settings that name it")
        candidate = find_candidate(client, run_id=run_id, version=version, model_name=name)
    return candidate, settings or candidate.effective_settings()


def _register(client: MlflowClient, decision_id: str, candidate: Candidate, judged: Judgement) -> str:
    assert judged.folder is not None
    evidence = judged.decision.evidence
    assert evidence is not None
    score = evidence.candidate
    assert score is not None
    assert candidate.run_id is not None
    assert candidate.experiment_id is not None
    version = registry.register(
        client,
        judged.decision.model_name,
        judged.folder,
        run_id=candidate.run_id,
        experiment_id=candidate.experiment_id,
        decision_id=decision_id,
        tags={
            names.VERSION_F1: repr(score.f1),
            names.F1_DEFINITION: score.key.f1_definition,
            names.TEST_DIGEST: score.key.test_digest,
            names.TEST_URI: candidate.test_uri or "",
            names.WEIGHTS_DIGEST: score.key.weights_digest,
        },
    )
    return str(version.version)


def _described(version: ModelVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    tags = version.tags
    return {
        "version": str(version.version),
        "f1": _number(tags.get(names.VERSION_F1)),
        "f1_definition": tags.get(names.F1_DEFINITION),
        "test_digest": tags.get(names.TEST_DIGEST),
        "weights_digest": tags.get(names.WEIGHTS_DIGEST),
        "run_id": version.run_id or None,
        "production_since": tags.get(names.PRODUCTION_SINCE),
        "rolled_back": tags.get(names.ROLLED_BACK),
        "decision_id": tags.get(names.DECISION_ID),
    }


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _listed(found: list[ModelVersion]) -> str:
    return ", ".join(str(version.version) for version in found) or "none"
