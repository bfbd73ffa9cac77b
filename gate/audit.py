"""The history of decisions: each one is an MLflow run of its own in the experiment ``trialgate-decisions``.

A decision that changes something is written before it is carried out: its run is RUNNING, names its owner, its turn of
the lease and the step it is at, and ends when everything is done. So whatever interrupts it, the next gate command
knows what to finish or undo (``carry_out.repair``). Nothing is ever taken out of the history: a decision whose run
somebody deleted in MLflow is still in it, until ``mlflow gc``.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from configs.exit_codes import CommandFailed
from gate import registry
from gate.decision import Decision, GateUsageError
from serve_app import mlflow_client as names
from serve_app.mlflow_client import ensure_experiment, is_orphan, owner_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

EXPERIMENT: Final = "trialgate-decisions"
DECISION_FILE: Final = "decision.json"
INTENT_FILE: Final = "intent.json"  # the decision before it is carried out
UNDONE: Final = "undone"

STEP: Final = "trialgate.step"
INTENT: Final = "trialgate.intent"  # what the run is about to do; DECISION is set when it is done
TURN: Final = "trialgate.lease_turn"  # as Lease.turn, with a slash: a higher one means a later decision
MODEL_MADE: Final = "trialgate.model_made"  # ms, by the registry: tells a registered model from a deleted namesake
CANDIDATE_EXPERIMENT: Final = "trialgate.candidate_experiment_id"
REASON: Final = "trialgate.reason"
_FIELDS: Final = {
    "action": "trialgate.action",
    "alias": "trialgate.alias",
    "model_version": "trialgate.model_version",
    "baseline_version": "trialgate.baseline_version",
    "production_version": "trialgate.production_version",
    "left_weights_digest": "trialgate.left_weights_digest",
    "run_id": "trialgate.candidate_run_id",
    "parent_run_id": "trialgate.candidate_parent_run_id",
    "f1": "trialgate.f1",
    "baseline_f1": "trialgate.baseline_f1",
    "minimum_f1": "trialgate.minimum_f1",
    "test_digest": names.TEST_DIGEST,
    "forced_reason": names.FORCED_REASON,
    "decided_at": names.DECIDED_AT,
    "decided_by": names.DECIDED_BY,
}
_VERSIONS: Final = "trialgate.versions"  # what a prune removes, separated by blanks
_NUMBERS: Final = ("f1", "baseline_f1", "minimum_f1")
_TAG_LIMIT: Final = 5000  # characters; MLflow takes 8000 bytes or fewer, depending on the store


class DecisionUnreadable(CommandFailed):
    """An interrupted decision that can be neither finished nor undone, because its document cannot be read."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}. It is left as it is: let the version of Trialgate that began it settle it (python -m gate "
            "status), or put the aliases right in MLflow and delete the decision's run there: the history keeps it"
        )


def now() -> str:
    """UTC with microseconds, ISO 8601: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def who() -> str:
    """The account and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def begin(
    client: MlflowClient, decision: Decision, *, experiment_id: str | None = None, turn: tuple[int, int] | None = None
) -> Decision:
    """Opens the run of ``decision`` and returns it with id, time and author.

    ``experiment_id``: the candidate's. ``turn``: of the lease; None for what is only recorded.
    """
    decision = decision.model_copy(update={"decided_at": now(), "decided_by": who()})
    tags = {
        names.KIND: names.KIND_DECISION,
        names.MODEL_NAME: decision.model_name,
        INTENT: decision.decision,
        STEP: "begun",
        "mlflow.runName": f"{decision.action} {decision.model_name}",
        **_tags(decision),
        **owner_tags(),
    }
    if experiment_id is not None:
        tags[CANDIDATE_EXPERIMENT] = experiment_id
    if turn is not None:
        tags[TURN] = "{}/{}".format(*turn)
    run = client.create_run(ensure_experiment(client, EXPERIMENT), tags=tags)
    decision = decision.model_copy(update={"decision_id": run.info.run_id})
    _write(client, decision, INTENT_FILE)
    return decision


def step(client: MlflowClient, decision: Decision, name: str) -> None:
    """Notes what is done next."""
    assert decision.decision_id is not None
    client.set_tag(decision.decision_id, STEP, name)


def finish(client: MlflowClient, decision: Decision) -> None:
    """Closes the decision's run: from now on it is history."""
    from mlflow.entities import Metric, RunTag

    assert decision.decision_id is not None
    _write(client, decision, DECISION_FILE)
    moment = int(datetime.now(UTC).timestamp() * 1000)
    metrics = [Metric(name, value, moment, 0) for name in _NUMBERS if (value := getattr(decision, name)) is not None]
    tags = {**_tags(decision), names.DECISION: decision.decision, STEP: "done"}
    if decision.model_version is not None:
        tags |= _made(registry.find_model(client, decision.model_name))
    client.log_batch(decision.decision_id, metrics, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_terminated(decision.decision_id, "FINISHED")


def abandon(client: MlflowClient, decision_id: str, reason: str) -> None:
    """Closes the run of a decision that was not carried out and left nothing behind."""
    from mlflow.entities import RunTag

    tags = {names.DECISION: UNDONE, REASON: reason[:_TAG_LIMIT], STEP: UNDONE}
    client.log_batch(decision_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.set_terminated(decision_id, "KILLED")


def load(client: MlflowClient, decision_id: str, file: str = INTENT_FILE) -> Decision | None:
    """The decision that the run is about to carry out, or with DECISION_FILE the one that it did carry out.

    None if it was interrupted before that was written. Raises DecisionUnreadable if it is there, whole, and not a
    decision as this version of Trialgate writes them.
    """
    with tempfile.TemporaryDirectory(prefix="trialgate-decision-") as folder:
        if file not in [found.path for found in client.list_artifacts(decision_id)]:
            return None
        try:
            content = json.loads(Path(client.download_artifacts(decision_id, file, folder)).read_bytes())
        except ValueError:  # half written
            return None
    try:
        return Decision.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise DecisionUnreadable(
            f"{file} of decision {decision_id} is not as this version of Trialgate writes it: {where}: {first['msg']}"
        ) from None


def interrupted(client: MlflowClient, model_name: str | None = None, turn: tuple[int, int] | None = None) -> list[Run]:
    """Runs of decisions that nobody carries out any more, oldest first.

    Their process is gone; or ``turn``, which holds the lease of ``model_name``, is higher than theirs.
    """
    condition = "attributes.status = 'RUNNING'"
    if model_name is not None:
        condition += f" and {_about(model_name)}"
    running = reversed(_search(client, condition, deleted=False))
    return [run for run in running if is_orphan(run.data.tags) or _is_before(run, turn)]


def is_recording(run: Run) -> bool:
    """Whether the decision of ``run`` changes nothing but the records, so that it needs no lease."""
    return run.data.tags.get(INTENT) == "blocked"


def history(client: MlflowClient, model_name: str, *, of_this_model: bool = False) -> list[dict[str, Any]]:
    """Every decision about ``model_name``, newest first, as plain values.

    ``of_this_model``: only those about the registered model that has the name now, not about a deleted one.
    """
    runs = _search(client, _about(model_name))
    return [
        _entry(run)
        for run in (_of_this_model(registry.find_model(client, model_name), runs) if of_this_model else runs)
    ]


def last_holder(client: MlflowClient, model_name: str, alias: str) -> str | None:
    """The version that the newest finished decision about this registered model gave ``alias`` to; None if there is no
    such decision."""
    newest = next(iter(_moves(client, model_name, registry.find_model(client, model_name), alias)), None)
    return None if newest is None else newest.data.tags.get(_FIELDS["model_version"])


def rolled_back_since(
    client: MlflowClient, state: registry.State, version: ModelVersion | None, weights_digest: str | None
) -> str | None:
    """Since when the weights that would be promoted, as ``version`` if they are registered, are marked rolled back.

    None if they are not. The mark outlives its version, so it is looked for in the history too.
    """
    if version is not None and names.ROLLED_BACK in version.tags:
        return str(version.tags[names.ROLLED_BACK])
    if weights_digest is None:
        return None
    for run in _moves(client, state.name, state.model, names.PRODUCTION):
        tags = run.data.tags
        if tags.get(_FIELDS["left_weights_digest"]) == weights_digest:
            return tags.get(names.DECIDED_AT, "nobody knows when")
        if tags.get(names.WEIGHTS_DIGEST) == weights_digest:
            return None  # in production once more, by force
    # The history is silent where ``mlflow gc`` took decisions out of it.
    marked = [other.tags.get(names.ROLLED_BACK) for other in state.with_weights(weights_digest)]
    return max(filter(None, marked), default=None)


def any_run(client: MlflowClient) -> Run | None:
    """The run of some decision; None if there is none yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    kind = f"tags.`{names.KIND}` = '{names.KIND_DECISION}'"
    return next(iter(client.search_runs([experiment.experiment_id], kind, max_results=1)), None)


def known_names(client: MlflowClient) -> list[str]:
    """Names of the models that were ever decided about."""
    return sorted({run.data.tags.get(names.MODEL_NAME, "") for run in _search(client, "")} - {""})


def _about(model_name: str) -> str:
    if "'" in model_name:  # settings refuse such names; this keeps a filter a filter for other callers too
        raise GateUsageError(f"model name {model_name!r}: expected a name without quotes")
    return f"tags.`{names.MODEL_NAME}` = '{model_name}'"


def _moves(client: MlflowClient, model_name: str, model: RegisteredModel | None, alias: str) -> list[Run]:
    """The finished decisions that gave ``alias`` to a version of the registered model ``model``, newest first."""
    if model is None:
        return []
    done = [run for run in _search(client, _about(model_name))
            if run.data.tags.get(names.DECISION) in ("promoted", "forced", "rolled_back")
            and run.data.tags.get(_FIELDS["alias"], names.PRODUCTION) == alias]  # fmt: skip
    return sorted(_of_this_model(model, done), key=_turn, reverse=True)  # those without one stay in order


def _of_this_model(model: RegisteredModel | None, runs: list[Run]) -> list[Run]:
    made = _made(model)
    return [run for run in runs if made and run.data.tags.get(MODEL_MADE, made[MODEL_MADE]) == made[MODEL_MADE]]


def _made(model: RegisteredModel | None) -> dict[str, str]:
    return {} if model is None else {MODEL_MADE: str(model.creation_timestamp)}


def _turn(run: Run) -> tuple[int, int]:
    made, _, ticket = run.data.tags.get(TURN, "").partition("/")
    return (int(made), int(ticket)) if made.isdigit() and ticket.isdigit() else (0, 0)


def _is_before(run: Run, turn: tuple[int, int] | None) -> bool:
    return turn is not None and TURN in run.data.tags and _turn(run) < turn


def _search(client: MlflowClient, condition: str, *, deleted: bool = True) -> list[Run]:
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    own = f"tags.`{names.KIND}` = '{names.KIND_DECISION}'"
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"{own} and {condition}" if condition else own,
            run_view_type=ViewType.ALL if deleted else ViewType.ACTIVE_ONLY,
            max_results=1000,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _entry(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    entry: dict[str, Any] = {
        "decision": tags.get(names.DECISION, "in_progress"),
        "reason": tags.get(REASON),
        "model_name": tags.get(names.MODEL_NAME),
        "decision_id": run.info.run_id,
        "deleted": run.info.lifecycle_stage != "active",
        "versions": tags.get(_VERSIONS, "").split(),
    }
    for field, tag in _FIELDS.items():
        entry[field] = tags.get(tag)
    for field in _NUMBERS:
        entry[field] = None if entry[field] is None else float(entry[field])
    return entry


def _tags(decision: Decision) -> dict[str, str]:
    values = decision.model_dump()
    tags = {tag: str(values[field])[:_TAG_LIMIT] for field, tag in _FIELDS.items() if values[field] is not None}
    if decision.evidence is not None and decision.evidence.candidate is not None:
        tags[names.WEIGHTS_DIGEST] = decision.evidence.candidate.key.weights_digest
    if decision.versions:
        tags[_VERSIONS] = " ".join(decision.versions)[:_TAG_LIMIT]
    return {**tags, REASON: decision.reason[:_TAG_LIMIT]}


def _write(client: MlflowClient, decision: Decision, file: str) -> None:
    assert decision.decision_id is not None
    client.log_text(decision.decision_id, decision.model_dump_json(indent=2), file)
