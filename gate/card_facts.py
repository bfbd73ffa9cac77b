"""Gathers the facts of a model card: from the version, its run, its search, its artifact, and the decisions about it.

Whatever is gone or was never there is left out of the card; only MLflow being away raises.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from gate import audit, registry
from gate.decision import Decision, GateUsageError
from gate.model_card import Card, DataRecord, Event
from serve_app import mlflow_client as names
from serve_app.inference.folder import INFO_FILE
from serve_app.mlflow_client import find_run, is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

DATA_FILE: Final = "data.json"  # what a search writes of its data, beside its settings
_PASSED: Final = ("promoted", "forced")


def gather_card(client: MlflowClient, model_name: str, version: str, decision: Decision | None = None) -> Card:
    """The card of a registered version. ``decision``: one that is being carried out, so that the history has it as in
    progress. Raises GateUsageError if there is no such version."""
    found = registry.get_version(client, model_name, version)
    if found is None:
        there = ", ".join(str(each.version) for each in registry.versions(client, model_name)) or "none"
        raise GateUsageError(f"version '{version}' of model '{model_name}' does not exist; there are: {there}")
    run = find_run(client, found.run_id) if found.run_id else None
    tags = run.data.tags if run else {}
    parent_id = tags.get(names.PARENT_RUN)
    history = _history(client, model_name, version, decision)
    return Card(
        model_name=model_name,
        version=version,
        registered_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        run_id=found.run_id or None,
        parent_run_id=parent_id,
        git_revision=tags.get("trialgate.git_revision"),
        max_length=_max_length(client, found),
        settings=_settings(_json(client, parent_id, names.SETTINGS_FILE)),
        parameters=dict(run.data.params) if run else {},
        data=_data(_json(client, parent_id, DATA_FILE)),
        decision=_newest_with_evidence(client, history, decision),
        history=history,
    )


def _history(client: MlflowClient, model_name: str, version: str, decision: Decision | None) -> list[Event]:
    entries = [entry for entry in audit.history(client, model_name, of_this_model=True)
               if entry["model_version"] == version
               and entry["decision"] not in ("in_progress", audit.UNDONE)]  # fmt: skip
    events = [
        Event.model_validate({field: entry[field] for field in Event.model_fields if entry[field] is not None})
        for entry in entries
    ]
    if decision is not None and decision.decision_id not in [event.decision_id for event in events]:
        events.append(Event.model_validate(decision.model_dump(include=set(Event.model_fields))))
    return sorted(events, key=lambda event: event.decided_at or "")


def _newest_with_evidence(client: MlflowClient, history: list[Event], decision: Decision | None) -> Decision | None:
    if decision is not None and decision.evidence is not None:
        return decision
    for event in reversed(history):
        if event.decision in _PASSED:
            try:
                found = audit.load(client, event.decision_id, audit.DECISION_FILE)
            except audit.DecisionUnreadable as error:
                logger.info("the model card goes without a decision: %s", error)
                continue
            if found is not None and found.evidence is not None:
                return found
    return None


def _json(client: MlflowClient, run_id: str | None, file: str) -> dict[str, Any]:
    """A run's JSON artifact; empty if it is not there."""
    if run_id is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="trialgate-card-") as folder:
        try:
            content = json.loads(Path(client.download_artifacts(run_id, file, folder)).read_bytes())
        except Exception as error:  # MLflow's own errors, whose type depends on the kind of store
            if is_unreachable(error):
                raise
            logger.info("the model card goes without %s of run %s: %s", file, run_id, error)
            return {}
    return content if isinstance(content, dict) else {}


def _data(content: Mapping[str, Any]) -> DataRecord | None:
    try:
        return DataRecord.model_validate(content) if content else None
    except ValidationError as error:
        logger.info("the model card goes without %s: %s", DATA_FILE, error)
        return None


def _settings(dump: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of model and training that have a value, by dotted name."""
    found: dict[str, Any] = {}
    waiting = [(section, dump.get(section)) for section in ("training", "model")]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", below) for key, below in value.items()]
        elif value is not None and value != []:
            found[name] = value
    return dict(sorted(found.items()))


def _max_length(client: MlflowClient, version: ModelVersion) -> int | None:
    """What the version's artifact says of the longest text that it reads, tokens."""
    import mlflow

    def fetch(path: str, folder: str) -> bytes:
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{version.name}/{version.version}/{path}",
            dst_path=folder,
            tracking_uri=client.tracking_uri,
            registry_uri=client.tracking_uri,
        )
        return Path(found).read_bytes()

    try:
        with tempfile.TemporaryDirectory(prefix="trialgate-card-") as folder:
            data = yaml.safe_load(fetch("MLmodel", folder))["flavors"]["python_function"]["data"]
            return int(json.loads(fetch(f"{data}/{INFO_FILE}", folder))["max_length"])
    except Exception as error:  # as in _json
        if is_unreachable(error):
            raise
        logger.info("the model card goes without the description of version %s: %s", version.version, error)
        return None
