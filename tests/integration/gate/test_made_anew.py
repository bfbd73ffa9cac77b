"""What counts of the history after somebody deleted a registered model in MLflow: the tickets', or the model itself."""

from __future__ import annotations

from pathlib import Path

from gate import audit, lease
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import Gate
from tests.integration.gate.world import World

NAME = "trialgate-classifier"


def test_the_newest_decision_is_known_when_the_tickets_began_again(
    world: World, models: dict[str, Path], gate: Gate
) -> None:
    for model in ("good", "good-too"):
        assert gate("promote", "--run-id", world.trial(models[model]))[0] == 0
    world.client.delete_registered_model(f"{NAME}{lease.SUFFIX}")
    assert gate("rollback")[1]["model_version"] == "1"
    assert audit.last_holder(world.client, NAME, names.PRODUCTION) == "1"
    world.client.delete_registered_model_alias(NAME, names.PRODUCTION)
    code, decision = gate("check", "--run-id", world.trial(models["bad"]))
    assert code == 3
    assert "production of trialgate-classifier was version 1" in decision["reason"]


def test_a_model_made_anew_has_no_past(world: World, models: dict[str, Path], gate: Gate) -> None:
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0
    world.client.delete_registered_model(NAME)
    too = gate("promote", "--run-id", world.trial(models["good-too"]), "--as", "challenger")[1]
    assert (too["model_version"], too["production_version"]) == ("1", None)
    code, decision = gate("promote", "--version", "1")
    assert (code, decision["production_version"]) == (0, "1")
    card = gate("card", "--version", "1")[1]
    assert [event["decision_id"] for event in card["history"]] == [too["decision_id"], decision["decision_id"]]
    assert len(gate("history")[1]["decisions"]) == 3
