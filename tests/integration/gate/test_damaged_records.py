"""Cut-off decisions whose documents are not as this version of the gate writes them: whatever is live stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gate import audit, carry_out, lease, promotion, registry
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.test_interruptions import DEAD
from tests.integration.gate.world import World

NAME = "trialgate-classifier"
OF_ANOTHER_VERSION = json.dumps({"decision": "promoted", "of_the_future": True})


def _cut_off_after_the_alias(world: World, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A promotion whose process is gone when production has moved, and its id."""

    def fails(*_: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(audit, "finish", fails)
        with pytest.raises(RuntimeError, match="the disk is full"):
            promotion.promote(world.client, run_id=world.trial(model))
    (entry,) = audit.history(world.client, NAME)
    world.client.set_tag(entry["decision_id"], names.OWNER, DEAD)
    return str(entry["decision_id"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (OF_ANOTHER_VERSION, "is not as this version of Trialgate writes it"),
        ('{"decision": "promo', "is gone or damaged"),
    ],
)
def test_a_document_that_cannot_be_read_undoes_nothing(
    world: World,
    models: dict[str, Path],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: str,
    words: str,
) -> None:
    client = world.client
    decision_id = _cut_off_after_the_alias(world, models["good"], monkeypatch)
    whole = client.get_run(decision_id)
    (logged,) = client.search_logged_models([world.experiment_id])
    client.log_text(decision_id, content, audit.INTENT_FILE)
    status = gate("status")[1]
    assert status["production_version"] == "1"
    assert status["decisions"][0]["decision"] == "in_progress"
    assert words in caplog.text

    code, document = gate("promote", "--run-id", world.trial(models["good-too"]))
    assert code == 1
    assert words in document["error"]
    assert "delete the decision's run" in document["error"]
    assert registry.aliases(client, NAME) == {names.PRODUCTION: "1"}
    assert client.get_logged_model(logged.model_id).model_id == logged.model_id
    assert client.get_run(decision_id).data.tags[audit.STEP] == whole.data.tags[audit.STEP]

    client.delete_run(decision_id)  # the way out that the message names
    assert gate("promote", "--run-id", world.trial(models["good-too"]))[1]["model_version"] == "2"
    assert registry.aliases(client, NAME) == {names.PRODUCTION: "2", names.PREVIOUS: "1"}


def test_undoing_keeps_the_logged_model_of_a_version_that_stays(world: World, models: dict[str, Path]) -> None:
    client = world.client
    decision = promotion.promote(client, run_id=world.trial(models["good"]))
    assert decision.decision_id is not None
    (model,) = client.search_logged_models([world.experiment_id])
    client.create_model_version(NAME, f"models:/{model.model_id}", model_id=model.model_id)  # by hand, from the same
    assert registry.unregister(client, NAME, [world.experiment_id], decision.decision_id) == []
    assert [str(version.version) for version in registry.versions(client, NAME)] == ["1", "2"]
    assert len(client.search_logged_models([world.experiment_id])) == 1


@ON_SQLITE_ALONE
def test_the_card_goes_without_a_decision_of_another_version(world: World, models: dict[str, Path], gate: Gate) -> None:
    decision = promotion.promote(world.client, run_id=world.trial(models["good"]))
    assert decision.decision_id is not None
    world.client.log_text(decision.decision_id, OF_ANOTHER_VERSION, audit.DECISION_FILE)
    code, card = gate("card", "--version", "1")
    assert (code, card["decision"]) == (0, None)
    assert [event["decision"] for event in card["history"]] == ["promoted"]


class NoPatience(lease.Lease):
    """A lease that nobody has time to wait for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, sleep=self._fail)

    def _fail(self, seconds: float) -> None:
        raise AssertionError(f"it waits for {seconds} s")


def test_status_waits_for_nobody(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _cut_off_after_the_alias(world, models["good"], monkeypatch)
    monkeypatch.setattr(carry_out, "Lease", NoPatience)
    with lease.Lease(world.client, NAME, "a promotion of somebody"):
        status = promotion.status(world.client, NAME)
    assert (status["production_version"], status["decisions"][0]["decision"]) == ("1", "in_progress")
    assert "is left to others: model 'trialgate-classifier' was being changed by a promotion of somebody" in caplog.text
    assert promotion.status(world.client, NAME)["decisions"][0]["decision"] == "promoted"
