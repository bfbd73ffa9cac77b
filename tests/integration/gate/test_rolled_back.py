"""That weights were rolled back outlives their version, and only a promotion by force makes them as good as new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gate import audit, lease, promotion, registry
from gate.decision import Decision
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.world import World

NAME = "trialgate-classifier"


def _pruned(world: World, gate: Gate) -> None:
    assert gate("prune", "--keep", "0")[1]["versions"] == ["2"]


def _deleted_by_hand(world: World, gate: Gate) -> None:
    world.client.delete_model_version(NAME, "2")


def _without_its_files(world: World, gate: Gate) -> None:
    (logged,) = (found for found in world.client.search_logged_models([world.experiment_id])
                 if found.model_id in world.client.get_model_version(NAME, "2").source)  # fmt: skip
    shutil.rmtree(logged.artifact_location.removeprefix("file://"))


@pytest.mark.parametrize(
    ("tracking_uri", "lost"),
    [("sqlite", _pruned), ("sqlite", _deleted_by_hand), ("sqlite", _without_its_files),
     pytest.param("server", _pruned, marks=pytest.mark.slow)],
    indirect=["tracking_uri"],
)  # fmt: skip
def test_the_mark_outlives_its_version(
    world: World, models: dict[str, Path], gate: Gate, lost: Callable[[World, Gate], None]
) -> None:
    for model in ("good", "good-too"):
        assert gate("promote", "--run-id", world.trial(models[model]))[0] == 0
    assert gate("rollback")[1]["production_version"] == "1"
    lost(world, gate)
    again = world.trial(models["good-too"])
    code, decision = gate("promote", "--run-id", again)
    assert (code, decision["production_version"]) == (3, "1")
    assert "these weights were rolled back" in decision["reason"]
    assert gate("promote", "--run-id", again, "--as", "challenger")[0] == 3

    assert gate("promote", "--run-id", again, "--force", "--reason", "r")[1]["model_version"] == "3"
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0
    assert gate("promote", "--version", "3")[1]["decision"] == "promoted"  # the force counts from then on


def _expire(world: World) -> None:
    """What somebody who waits does to a holder that was stopped for too long."""
    (ticket,) = world.client.search_model_versions(f"name='{NAME}{lease.SUFFIX}' and tags.`{lease.STATE}` = 'open'")
    world.client.set_model_version_tag(ticket.name, str(ticket.version), lease.STATE, "expired")


@ON_SQLITE_ALONE
def test_a_rollback_that_goes_on_too_late_marks_nothing(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still after its alias has moved. Meanwhile it is finished, and what it left is forced back."""
    for model in ("good", "good-too"):
        promotion.promote(world.client, run_id=world.trial(models[model]))
    step = audit.step

    def stand_still(client: MlflowClient, decision: Decision, name: str) -> None:
        step(client, decision, name)
        if name == "complete":
            monkeypatch.setattr(audit, "step", step)
            _expire(world)
            promotion.promote(client, settings=world.settings, version="2", force=True, reason="r")

    monkeypatch.setattr(audit, "step", stand_still)
    assert promotion.rollback(world.client, NAME).decision == "rolled_back"  # by whoever was next
    assert registry.aliases(world.client, NAME) == {"production": "2", "previous": "1"}
    assert names.ROLLED_BACK not in world.client.get_model_version(NAME, "2").tags


def test_a_promotion_that_goes_on_too_late_takes_no_mark_away(world: World, models: dict[str, Path]) -> None:
    """It stands still when it has read its version. Meanwhile it is finished, and rolled back once more."""
    for model in ("good", "good-too"):
        promotion.promote(world.client, run_id=world.trial(models[model]))
    promotion.rollback(world.client, NAME)
    stopped: Any = StandsStill(world.client, lambda: (_expire(world), promotion.rollback(world.client, NAME)))
    forced = promotion.promote(stopped, settings=world.settings, version="2", force=True, reason="r")
    assert stopped.resumed
    assert forced.decision == "forced"  # it was, for a while
    assert registry.aliases(world.client, NAME) == {"production": "1"}
    assert names.ROLLED_BACK in world.client.get_model_version(NAME, "2").tags


class StandsStill:
    """A client that stands still, while ``meanwhile`` happens, before it tells a version of the decision about it."""

    def __init__(self, client: MlflowClient, meanwhile: Callable[[], object]) -> None:
        self._client, self._meanwhile, self.resumed = client, meanwhile, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        if key == names.DECISION_ID and not self.resumed:
            self.resumed = True
            self._meanwhile()
        self._client.set_model_version_tag(name, version, key, value)
