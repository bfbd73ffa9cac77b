"""That weights were rolled back outlives their version, and only a promotion by force makes them as good as new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.gate.conftest import Gate
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
