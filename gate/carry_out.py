"""Decisions that change something: carried out step by step, and finished or undone when they are cut off.

The steps stand around one that users notice, the move of an alias. Until then everything can be undone, from then on
everything is finished; ``_settle`` does either: here after an error, in ``repair`` after a crash, and before anything
else for whoever has the lease next. A prune has no such step: it is always finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from gate import audit, registry
from gate.attachments import attach
from gate.decision import Decision
from gate.lease import LIMIT_SECONDS, Lease, LeaseLost, LeaseRefused
from serve_app import mlflow_client as names
from serve_app.mlflow_client import CHALLENGER, PRODUCTION, Heartbeat, find_run, is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_REPAIR_WAIT_SECONDS: Final = LIMIT_SECONDS + 15.0  # whoever holds the lease longer repairs it himself


def record(client: MlflowClient, decision: Decision) -> Decision:
    """Records a blocked decision, in the history and on the candidate's run. Needs no lease."""
    return _recorded(client, audit.begin(client, decision))


def carry_out(
    client: MlflowClient,
    lease: Lease,
    decision: Decision,
    *,
    experiment_id: str | None = None,
    register: Callable[[str], str] | None = None,
) -> Decision:
    """Does what ``decision`` says, and records all of it. The lease must be held, with ``settle_interrupted`` done.

    ``register`` makes the version if there is none yet, from the decision's id. ``experiment_id``: the candidate's.
    An error leaves it finished or undone; if not even that works, the next gate command does it once this process is
    gone. Raises LeaseLost if that cost the decision.
    """
    decision = audit.begin(client, decision, experiment_id=experiment_id, turn=lease.turn)
    assert decision.decision_id is not None
    try:
        with Heartbeat.of_run(client, decision.decision_id):
            return _steps(client, lease, decision, register)
    except BaseException as error:
        finished = _after_error(client, lease, decision)
        if finished is not None and isinstance(error, LeaseLost):
            return finished
        raise


def settle_interrupted(client: MlflowClient, lease: Lease) -> list[str]:
    """Finishes or undoes every decision of the lease's model that was under way when its holder lost it."""
    done = []
    for run in audit.interrupted(client, lease.model_name, lease.turn):
        done.append(_settle(client, run, lease.check))
        logger.warning("repaired: %s", done[-1])
    return done


def repair(client: MlflowClient, wait_s: float = _REPAIR_WAIT_SECONDS) -> list[str]:
    """Finishes or undoes every decision whose process is gone. Returns what was done, in words.

    ``wait_s``: how long for the turn of each model (seconds); with 0 a model that is being changed is left at once.
    What cannot be settled here, because this user may not, because the model is being changed just now, or for a fault
    of its own, is left with a warning: it holds up whoever changes its model, and nobody else. Raises only when MLflow
    is gone.
    """
    done = []
    left = []
    for run in audit.interrupted(client):
        name = run.data.tags[names.MODEL_NAME]
        try:
            if audit.is_recording(run):
                done.append(_settle(client, run, lambda: None))
                logger.warning("repaired: %s", done[-1])
            elif name not in left:
                left.append(name)
                with Lease(client, name, f"a repair by {audit.who()}", wait_s=wait_s) as lease:
                    done += settle_interrupted(client, lease)
        except Exception as error:
            if is_unreachable(error) and not isinstance(error, LeaseRefused):
                raise
            logger.warning("decision %s was interrupted and is left to others: %s", run.info.run_id, error)
    return done


def _recorded(client: MlflowClient, decision: Decision) -> Decision:
    _tag_candidate(client, decision)
    attach(client, decision)
    audit.finish(client, decision)
    return decision


def _steps(client: MlflowClient, lease: Lease, decision: Decision, register: Callable[[str], str] | None) -> Decision:
    name = decision.model_name
    if decision.action == "prune":
        return _finish_prune(client, decision, lease.check)
    if decision.model_version is None:
        assert register is not None
        assert decision.decision_id is not None
        audit.step(client, decision, "register")
        lease.check()
        decision = decision.model_copy(update={"model_version": register(decision.decision_id)})
    assert decision.model_version is not None
    audit.step(client, decision, "alias")
    lease.check()
    try:
        registry.promote_alias(client, name, decision.model_version, decision.alias)
    finally:
        lease.check()
    audit.step(client, decision, "complete")
    return _complete(client, decision, lease.check)


def _after_error(client: MlflowClient, lease: Lease, decision: Decision) -> Decision | None:
    """Whatever went wrong, the decision is finished (then it is returned) or undone.

    If the lease was lost, others may have done that, and decided something else since. Theirs counts.
    """
    decision_id = decision.decision_id
    assert decision_id is not None
    try:
        lease.regain()
        run = client.get_run(decision_id)
        if run.info.status == "RUNNING":
            logger.warning("interrupted: %s", _settle(client, run, lease.check))
            run = client.get_run(decision_id)
        if run.info.status == "FINISHED":
            finished = audit.load(client, decision_id, audit.DECISION_FILE)
        else:  # some writes may have come after its undoing
            finished = None
            _put_back(client, lease, decision)
            registry.unregister(client, decision.model_name, _experiments(run), decision_id)
        production = registry.aliases(client, decision.model_name).get(PRODUCTION)
        if production is not None:
            registry.renew_previous(client, decision.model_name, production)
        return finished
    except Exception as error:  # noqa: BLE001 - the first error is the one to tell
        logger.warning("decision %s could not be settled now (%s): the next gate command does it", decision_id, error)
        return None


def _put_back(client: MlflowClient, lease: Lease, decision: Decision) -> None:
    """An alias that this undone decision moved after its time goes back to where the newest decision put it."""
    name, alias = decision.model_name, decision.alias
    current = registry.holder(client, name, alias)
    if current is None or (str(current.version) != decision.model_version
                           and current.tags.get(registry.REGISTERED_BY) != decision.decision_id):  # fmt: skip
        return
    rightful = audit.last_holder(client, name, alias)
    if rightful == str(current.version):
        return
    if rightful is not None and alias == CHALLENGER and registry.aliases(client, name).get(PRODUCTION) == rightful:
        rightful = None  # it is no challenger any more
    lease.check()
    logger.warning("the alias %s of %s moved to version %s too late: it goes back to %s", alias, name, current.version,
                   f"version {rightful}" if rightful else "no version")  # fmt: skip
    if rightful is None or registry.get_version(client, name, rightful) is None:
        client.delete_registered_model_alias(name, alias)
    else:
        registry.promote_alias(client, name, rightful, alias)


def _experiments(run: Run) -> list[str]:
    """Where the candidate of a decision's run, and so what was registered for it, lies."""
    experiment = run.data.tags.get(audit.CANDIDATE_EXPERIMENT)
    return [experiment] if experiment else []


def _settle(client: MlflowClient, run: Run, check: Callable[[], None]) -> str:
    """Finishes a decision whose alias has moved, undoes any other. Returns what was done, in words.

    ``check`` raises if the lease is lost. Raises DecisionUnreadable for one of which nobody can tell.
    """
    decision_id, name, intent = run.info.run_id, run.data.tags[names.MODEL_NAME], run.data.tags.get(audit.INTENT)
    decision = audit.load(client, decision_id)
    if decision is not None and audit.is_recording(run):
        _recorded(client, decision)
        return f"decision {decision_id} (blocked) is recorded"
    check()
    if decision is not None and decision.action == "prune":
        _finish_prune(client, decision, check)
        return f"decision {decision_id} (prune) is finished: removed versions {', '.join(decision.versions)}"
    holder = None if decision is None else registry.holder(client, name, decision.alias)
    if decision is not None and holder is not None:
        made_here = holder.tags.get(registry.REGISTERED_BY) == decision_id
        if made_here or str(holder.version) == decision.model_version:
            decision = decision.model_copy(update={"model_version": str(holder.version)})
            _complete(client, decision, check)
            return f"decision {decision_id} ({intent}) is finished: version {holder.version} is {decision.alias}"
    if decision is None:
        _refuse_if_it_got_further(client, run)
    removed = registry.unregister(client, name, _experiments(run), decision_id)
    what = f"interrupted before any alias moved; removed: {', '.join(removed) or 'nothing to remove'}"
    audit.abandon(client, decision_id, what)
    return f"decision {decision_id} ({intent}) is undone: {what}"


def _refuse_if_it_got_further(client: MlflowClient, run: Run) -> None:
    """The document is written first of all. Without it a decision that came as far as an alias has lost it later, and
    what has moved must not be taken for undone."""
    name, decision_id = run.data.tags[names.MODEL_NAME], run.info.run_id
    held = [registry.get_version(client, name, number) for number in registry.aliases(client, name).values()]
    own = [version for version in held if version and version.tags.get(registry.REGISTERED_BY) == decision_id]
    step = run.data.tags.get(audit.STEP)
    if own or step in ("alias", "complete"):
        raise audit.DecisionUnreadable(
            f"decision {decision_id} about '{name}' came to the step '{step}', but its {audit.INTENT_FILE} is gone or "
            "damaged"
        )


def _complete(client: MlflowClient, decision: Decision, check: Callable[[], None]) -> Decision:
    """Everything that follows the move of the alias. Doing it again changes nothing."""
    name, version, decision_id = decision.model_name, decision.model_version, decision.decision_id
    assert version is not None
    assert decision_id is not None
    check()
    new = client.get_model_version(name, version)
    if decision.alias == PRODUCTION and decision.baseline_version is not None:
        _leave(client, name, decision.baseline_version, rolled_back=decision.decision == "rolled_back")
    if new.tags.get(names.DECISION_ID) != decision_id:
        tags = {names.PRODUCTION_SINCE: audit.now()} if decision.alias == PRODUCTION else {}
        if decision.decision != "rolled_back" and decision.f1 is not None:
            tags |= {names.VERSION_F1: repr(decision.f1), names.TEST_DIGEST: decision.test_digest or ""}
        tags |= _told(decision)
        for key in {names.FORCED_REASON} & new.tags.keys() - tags.keys():  # of an earlier decision
            client.delete_model_version_tag(name, version, key)
        for key, value in {**tags, names.DECISION_ID: decision_id}.items():
            client.set_model_version_tag(name, version, key, value)
    if decision.alias == PRODUCTION:
        check()
        if names.ROLLED_BACK in new.tags:  # it was forced back: it counts as production again
            client.delete_model_version_tag(name, version, names.ROLLED_BACK)
        if registry.renew_previous(client, name, version).get(CHALLENGER) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        decision = decision.model_copy(update={"production_version": version, "changed": True})
    return _recorded(client, decision)


def _told(decision: Decision) -> dict[str, str]:
    """What a version's tags tell of the decision that gave it an alias."""
    values = {
        names.DECISION: decision.decision,
        names.DECIDED_AT: decision.decided_at,
        names.DECIDED_BY: decision.decided_by,
        names.FORCED_REASON: decision.forced_reason if decision.decision == "forced" else None,
    }
    return {key: value[:1000] for key, value in values.items() if value}


def _finish_prune(client: MlflowClient, decision: Decision, check: Callable[[], None]) -> Decision:
    """Removes the versions that are still there. One that has been given an alias meanwhile stays."""
    kept = set(registry.aliases(client, decision.model_name).values())
    versions = [version for version in decision.versions if version not in kept]
    for version in versions:
        check()
        registry.remove(client, decision.model_name, version)
    return _recorded(client, decision.model_copy(update={"versions": versions}))


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

    if decision.action != "promote":
        return
    tags = {
        names.DECISION: decision.decision,
        names.DECISION_ID: decision.decision_id or "",
        f"{names.DECISION}_reason": decision.reason[:1000],
    }
    for run_id in filter(None, (decision.run_id, decision.parent_run_id)):
        run = find_run(client, run_id)
        if run is None or run.info.lifecycle_stage != "active":
            continue
        if run_id == decision.run_id or run.data.tags.get(names.BEST_RUN) == decision.run_id:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
