"""What the gate does: check, promote, roll back, and repair what an interrupted command left.

A change is a row of steps around one that users notice, the move of the alias ``production``. Until then everything
can be undone, from then on everything is finished; ``_settle`` does either, here after an error and in ``repair`` after
a crash. Promotions are not serialised across processes yet: ``_carry_out`` is the one place where a lock belongs.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.exit_codes import CommandFailed
from configs.schema import Settings
from gate import audit, registry
from gate.candidates import Candidate, active_run_id, find_candidate
from gate.decision import Decision, GateUsageError
from gate.judgement import Judgement, judge
from serve_app import mlflow_client as names
from serve_app.mlflow_client import PREVIOUS, PRODUCTION, Heartbeat

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


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
    with tempfile.TemporaryDirectory(prefix="trialgate-gate-") as folder:
        return judge(client, candidate, settings, Path(folder), "check", force=False).decision


def promote(
    client: MlflowClient,
    settings: Settings | None = None,
    run_id: str | None = None,
    version: str | None = None,
    *,
    candidate: Candidate | None = None,
    force: bool = False,
    reason: str | None = None,
) -> Decision:
    """Decides, and if the candidate passes registers it (unless a version has its weights) and makes it production.

    A decision, blocked ones too, is recorded as a run of its own and on the candidate's run. ``force`` (with a
    ``reason``) overrides a verdict or a production model that cannot be scored, never a candidate without a score.
    What is production already stays so, and nothing is recorded. Raises as ``check`` does.
    """
    if force and not (reason or "").strip():
        raise GateUsageError("--force needs a reason for the record: add --reason TEXT")
    repair(client)
    candidate, settings = _resolve(client, settings, run_id, version, candidate)
    with tempfile.TemporaryDirectory(prefix="trialgate-gate-") as folder:
        judged = judge(client, candidate, settings, Path(folder), "promote", force=force)
        decision = judged.decision.model_copy(update={"forced_reason": reason})
        if decision.decision == "blocked":
            return _record(client, decision)
        if judged.version is not None and str(judged.version.version) == decision.baseline_version:
            return decision.model_copy(
                update={
                    "decision": "promoted",
                    "reason": f"version {judged.version.version} is already production; {decision.reason}",
                }
            )
        return _carry_out(client, decision, candidate, judged)


def rollback(client: MlflowClient, model_name: str, to: str | None = None, reason: str | None = None) -> Decision:
    """Production goes back to ``to`` (default: the version under ``previous``).

    Only to a version that was in production and was not itself rolled back; the one that is left is marked rolled
    back. Without such a version the decision is blocked. Raises GateUsageError, TrackingUnavailable.
    """
    repair(client)
    to = None if to is None else str(to)
    current = registry.aliased(client, model_name, PRODUCTION)
    left = None if current is None else str(current.version)
    decision = Decision(decision="blocked", reason="", action="rollback", model_name=model_name,
                        baseline_version=left, production_version=left, forced_reason=reason)  # fmt: skip
    if to is not None and to == left:
        return decision.model_copy(update={
            "decision": "rolled_back", "reason": f"version {to} is already production", "model_version": to,
        })  # fmt: skip
    target, problem = _rollback_target(client, model_name, left, to)
    if target is not None:
        decision = decision.model_copy(
            update={
                "model_version": str(target.version),
                "run_id": target.run_id or None,
                "f1": _number(target.tags.get(names.VERSION_F1)),
                "baseline_f1": _number(current.tags.get(names.VERSION_F1)) if current else None,
                "test_digest": target.tags.get(names.TEST_DIGEST),
            }
        )
    if target is None and registry.find_model(client, model_name) is None:
        return decision.model_copy(update={"reason": problem})  # a model that never was has no history
    if target is None or problem:
        return _record(client, decision.model_copy(update={"reason": problem}))
    what = f"from version {left} to version {target.version}"
    what = f"{what}: {reason}" if reason else what
    decision = decision.model_copy(update={"decision": "rolled_back", "reason": what})
    return _carry_out(client, decision, None, None)


def _rollback_target(
    client: MlflowClient, model_name: str, left: str | None, to: str | None
) -> tuple[ModelVersion | None, str]:
    """The version to go back to, and what speaks against it (empty: nothing)."""
    if to is not None:
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
            return target, (
                f"version {to} was never in production: promote it with python -m gate promote --version {to}"
            )
    elif left is None:
        return None, f"nothing to go back to: model '{model_name}' has no version in production"
    else:
        target = registry.best_previous(client, model_name, left)
        if target is None:
            return None, (
                f"nothing to go back to: no earlier production version of '{model_name}' is left that was "
                "not rolled back"
            )
    return target, ""


def status(client: MlflowClient, model_name: str) -> dict[str, Any]:
    """What is in production, what was before, and every decision, newest first. Repairs first."""
    repair(client)
    production = registry.aliased(client, model_name, PRODUCTION)
    previous = registry.aliased(client, model_name, PREVIOUS)
    model = registry.find_model(client, model_name)
    return {
        "model_name": model_name,
        "production_version": str(production.version) if production else None,
        "previous_version": str(previous.version) if previous else None,
        "production": _described(production),
        "previous": _described(previous),
        "versions": [_described(version) for version in registry.versions(client, model_name)] if model else [],
        "decisions": audit.history(client, model_name),
    }


def repair(client: MlflowClient) -> list[str]:
    """Finishes or undoes every decision whose process is gone. Returns what was done, in words."""
    done = []
    for run in audit.interrupted(client):
        done.append(_settle(client, run))
        logger.warning("repaired: %s", done[-1])
    return done


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


def _record(client: MlflowClient, decision: Decision) -> Decision:
    """Records a blocked decision, in the history and on the candidate's run."""
    decision = audit.begin(client, decision, None)
    with _settled_on_error(client, decision):
        _tag_candidate(client, decision)
        audit.finish(client, decision)
    return decision


def _carry_out(
    client: MlflowClient, decision: Decision, candidate: Candidate | None, judged: Judgement | None
) -> Decision:
    """Registers if need be, moves the alias, and records all of it."""
    decision = audit.begin(client, decision, candidate.experiment_id if candidate else None)
    assert decision.decision_id is not None
    with Heartbeat(client, decision.decision_id), _settled_on_error(client, decision):
        if decision.model_version is None:
            assert candidate is not None
            assert judged is not None
            audit.step(client, decision, "register")
            decision = _register(client, decision, candidate, judged)
        assert decision.model_version is not None
        _refuse_if_moved(client, decision)
        audit.step(client, decision, "alias")
        registry.promote_alias(client, decision.model_name, decision.model_version)
        audit.step(client, decision, "complete")
        return _complete(client, decision)


def _refuse_if_moved(client: MlflowClient, decision: Decision) -> None:
    """A promotion is judged against one production version; another process may have replaced it since."""
    now = registry.aliased(client, decision.model_name, PRODUCTION)
    if decision.action == "promote" and (now and str(now.version)) != decision.baseline_version:
        before, after = decision.baseline_version or "none", now.version if now else "none"
        raise CommandFailed(f"production of {decision.model_name} moved from version {before} to {after} while this "
                            "promotion was decided: run it again")  # fmt: skip


def _register(client: MlflowClient, decision: Decision, candidate: Candidate, judged: Judgement) -> Decision:
    assert judged.folder is not None
    assert decision.evidence is not None
    score = decision.evidence.candidate
    assert score is not None
    assert candidate.run_id is not None
    assert candidate.experiment_id is not None
    assert decision.decision_id is not None
    version = registry.register(
        client,
        decision.model_name,
        judged.folder,
        run_id=candidate.run_id,
        experiment_id=candidate.experiment_id,
        decision_id=decision.decision_id,
        tags={
            names.VERSION_F1: repr(score.f1),
            names.F1_DEFINITION: score.key.f1_definition,
            names.TEST_DIGEST: score.key.test_digest,
            names.TEST_URI: candidate.test_uri or "",
            names.WEIGHTS_DIGEST: score.key.weights_digest,
        },
    )
    return decision.model_copy(update={"model_version": str(version.version)})


@contextlib.contextmanager
def _settled_on_error(client: MlflowClient, decision: Decision) -> Iterator[None]:
    """Whatever goes wrong inside, the decision is finished or undone. If not even that works, the next gate command
    does it once this process is gone."""
    assert decision.decision_id is not None
    try:
        yield
    except BaseException:
        try:
            logger.warning("interrupted: %s", _settle(client, client.get_run(decision.decision_id)))
        except Exception as error:  # noqa: BLE001 - the first error is the one to tell
            logger.warning("decision %s could not be undone now (%s): the next gate command does it",
                           decision.decision_id, error)  # fmt: skip
        raise


def _settle(client: MlflowClient, run: Run) -> str:
    """Finishes a decision whose alias has moved, undoes any other. Returns what was done, in words."""
    tags, decision_id = run.data.tags, run.info.run_id
    name, intent = tags[names.MODEL_NAME], tags.get(audit.INTENT)
    decision = audit.load(client, decision_id)
    if decision is not None and intent == "blocked":
        _tag_candidate(client, decision)
        audit.finish(client, decision)
        return f"decision {decision_id} (blocked) is recorded"
    production = registry.aliased(client, name, PRODUCTION)
    if decision is not None and production is not None:
        made_here = production.tags.get(registry.REGISTERED_BY) == decision_id
        if made_here or str(production.version) == decision.model_version:
            decision = decision.model_copy(update={"model_version": str(production.version)})
            _complete(client, decision)
            return f"decision {decision_id} ({intent}) is finished: version {production.version} is production"
    experiment = tags.get(audit.CANDIDATE_EXPERIMENT)
    removed = registry.unregister(client, name, [experiment] if experiment else [], decision_id)
    what = f"interrupted before production changed; removed: {', '.join(removed) or 'nothing to remove'}"
    audit.abandon(client, decision_id, what)
    return f"decision {decision_id} ({intent}) is undone: {what}"


def _complete(client: MlflowClient, decision: Decision) -> Decision:
    """Everything that follows the move of the alias. Doing it again changes nothing."""
    name, version, decision_id = decision.model_name, decision.model_version, decision.decision_id
    assert version is not None
    assert decision_id is not None
    if decision.baseline_version is not None:
        _leave(client, name, decision.baseline_version, rolled_back=decision.decision == "rolled_back")
    new = client.get_model_version(name, version)
    if new.tags.get(names.DECISION_ID) != decision_id:
        tags = {names.PRODUCTION_SINCE: audit.now()}
        if decision.decision != "rolled_back" and decision.f1 is not None:
            tags |= {names.VERSION_F1: repr(decision.f1), names.TEST_DIGEST: decision.test_digest or ""}
        for key, value in {**tags, names.DECISION_ID: decision_id}.items():
            client.set_model_version_tag(name, version, key, value)
    if names.ROLLED_BACK in new.tags:  # it was forced back: it counts as production again
        client.delete_model_version_tag(name, version, names.ROLLED_BACK)
    registry.renew_previous(client, name, version)
    decision = decision.model_copy(update={"production_version": version, "changed": True})
    _tag_candidate(client, decision)
    audit.finish(client, decision)
    return decision


def _leave(client: MlflowClient, name: str, version: str, *, rolled_back: bool) -> None:
    """Marks the version that was in production until now."""
    old = registry.get_version(client, name, version)
    if old is None:
        return
    if names.PRODUCTION_SINCE not in old.tags:  # somebody set the alias by hand
        since = datetime.fromtimestamp(old.creation_timestamp / 1000, UTC).isoformat(timespec="microseconds")
        client.set_model_version_tag(name, version, names.PRODUCTION_SINCE, since)
    if rolled_back and names.ROLLED_BACK not in old.tags:
        client.set_model_version_tag(name, version, names.ROLLED_BACK, audit.now())


def _tag_candidate(client: MlflowClient, decision: Decision) -> None:
    """Puts the decision where people look first: on the candidate's run, and on its search's if it is the best."""
    from mlflow.entities import RunTag

    if decision.action == "rollback":
        return
    tags = {
        names.DECISION: decision.decision,
        names.DECISION_ID: decision.decision_id or "",
        f"{names.DECISION}_reason": decision.reason[:1000],
    }
    run_ids = [active_run_id(client, decision.run_id), active_run_id(client, decision.parent_run_id)]
    for run_id in filter(None, run_ids):
        if run_id == decision.run_id or client.get_run(run_id).data.tags.get(names.BEST_RUN) == decision.run_id:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


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
