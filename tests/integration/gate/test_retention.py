"""What stands beside production and behind it: challenger, earlier versions, prune, and the history of all of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from gate import audit, lease, promotion, registry
from gate.__main__ import main
from gate.lease import LeaseLost
from gate.permissions import require_right_to_change
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.world import World
from tests.tiny import write_tiny_model

NAME = "trialgate-classifier"


def _aliases(world: World) -> dict[str, str]:
    return registry.aliases(world.client, NAME)


def _forced(world: World, folder: Path, count: int) -> None:
    """Promotes that many different models by force."""
    for seed in range(count):
        model = write_tiny_model(folder / f"forced-{seed}", seed=seed)
        promotion.promote(world.client, run_id=world.trial(model), force=True, reason="r")


def test_challenger_passes_the_same_gate_and_becomes_production_through_it(
    world: World, models: dict[str, Path], gate: Gate
) -> None:
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0
    bad, too = world.trial(models["bad"]), world.trial(models["good-too"])
    assert gate("promote", "--run-id", bad, "--as", "challenger")[0] == 3
    assert _aliases(world) == {"production": "1"}

    code, decision = gate("promote", "--run-id", too, "--as", "challenger")
    assert (code, decision["decision"], decision["alias"]) == (0, "promoted", "challenger")
    assert (decision["model_version"], decision["production_version"], decision["changed"]) == ("2", "1", False)
    assert _aliases(world) == {"production": "1", "challenger": "2"}
    status = gate("status")[1]
    assert (status["challenger_version"], status["challenger"]["f1"]) == ("2", 1.0)
    assert status["challenger"]["production_since"] is None
    assert gate("promote", "--run-id", too, "--as", "challenger")[1]["decision_id"] is None  # it is already
    assert gate("rollback", "--to", "2")[0] == 3  # never was in production
    assert "cannot be the challenger" in gate("promote", "--version", "1", "--as", "challenger")[1]["error"]

    assert gate("promote", "--version", "2")[1]["alias"] == "production"
    assert _aliases(world) == {"production": "2", "previous": "1"}
    assert gate("promote", "--run-id", bad, "--as", "challenger", "--force", "--reason", "to look at")[0] == 0
    assert _aliases(world) == {"production": "2", "previous": "1", "challenger": "3"}
    kinds = [(entry["decision"], entry["alias"]) for entry in gate("history")[1]["decisions"]]
    assert kinds == [("forced", "challenger"), ("promoted", "production"), ("blocked", "production"),
                     ("promoted", "challenger"), ("blocked", "challenger"), ("promoted", "production")]  # fmt: skip


def test_prune_removes_what_has_no_alias_and_tells_what_that_costs(
    world: World, tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    _forced(world, tmp_path, 5)
    assert gate("rollback")[0] == 0  # 5 is marked, 4 is production, 3 previous
    world.client.set_registered_model_alias(NAME, "of-somebody", "1")

    code, plan = gate("prune", "--keep", "2", "--dry-run")
    assert (code, plan["decision"], plan["versions"]) == (0, "would_prune", ["2"])
    assert len(registry.versions(world.client, NAME)) == 5
    code, decision = gate("prune", "--keep", "0")
    assert (code, decision["decision"], decision["versions"]) == (0, "pruned", ["2", "5"])
    assert "could have gone back to 1 of them" in decision["reason"]
    assert [str(version.version) for version in registry.versions(world.client, NAME)] == ["1", "3", "4"]
    assert len(world.client.search_logged_models([world.experiment_id])) == 3
    newest = gate("history")[1]["decisions"][0]
    assert (newest["decision"], newest["versions"], newest["decision_id"]) == ("pruned", ["2", "5"],
                                                                               decision["decision_id"])  # fmt: skip
    before = len(gate("history")[1]["decisions"])
    code, nothing = gate("prune", "--keep", "0")
    assert (code, nothing["versions"], nothing["decision_id"]) == (0, [], None)
    assert "nothing to remove" in nothing["reason"]
    assert len(gate("history")[1]["decisions"]) == before
    assert gate("prune", "--keep", "-1")[0] == 2
    for dry_run in ([], ["--dry-run"]):
        assert main(["prune", "--keep", "0", *dry_run]) == 0
        assert capsys.readouterr().out.startswith(f"nothing to prune from {NAME}\n")
    assert _aliases(world) == {"production": "4", "previous": "3", "of-somebody": "1"}


def test_rollback_twice_after_force_and_over_a_version_that_is_gone(world: World, tmp_path: Path, gate: Gate) -> None:
    _forced(world, tmp_path, 5)
    world.client.delete_model_version(NAME, "3")
    assert gate("rollback")[1]["model_version"] == "4"
    assert _aliases(world) == {"production": "4", "previous": "2"}
    assert gate("rollback")[1]["model_version"] == "2"
    assert _aliases(world) == {"production": "2", "previous": "1"}
    assert gate("rollback", "--to", "4")[0] == 3  # itself rolled back
    assert gate("rollback", "--to", "3")[0] == 2  # does not exist

    world.client.delete_model_version(NAME, "2")  # production, by hand
    assert _aliases(world) == {"previous": "1"}
    code, decision = gate("rollback")
    assert (code, decision["model_version"], decision["baseline_version"]) == (0, "1", None)
    assert _aliases(world) == {"production": "1"}
    assert gate("rollback")[0] == 3
    world.client.delete_model_version(NAME, "1")
    assert "nothing to go back to" in gate("rollback")[1]["reason"]


def test_decision_whose_run_was_deleted_stays_in_the_history(
    world: World, models: dict[str, Path], gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = gate("promote", "--run-id", world.trial(models["good"]))[1]
    world.client.delete_run(decision["decision_id"])
    (entry,) = gate("history")[1]["decisions"]
    assert (entry["decision"], entry["deleted"]) == ("promoted", True)
    experiment = world.client.get_experiment_by_name(audit.EXPERIMENT)
    assert experiment is not None
    world.client.delete_experiment(experiment.experiment_id)
    assert len(gate("history")[1]["decisions"]) == 1
    assert gate("rollback")[0] == 3  # recorded: the experiment is there again
    assert [entry["decision"] for entry in gate("history")[1]["decisions"]] == ["blocked", "promoted"]


def test_registered_model_of_another_tool_is_refused_unless_it_is_empty(
    world: World, models: dict[str, Path], gate: Gate
) -> None:
    client, run_id = world.client, world.trial(models["good"])
    client.create_registered_model(NAME)
    client.create_model_version(NAME, f"runs:/{run_id}/model", run_id=run_id)
    for command in (
        ("check", "--run-id", run_id),
        ("promote", "--run-id", run_id),
        ("rollback",),
        ("prune", "--keep", "1"),
    ):
        code, document = gate(*command)
        assert code == 2
        assert "another tool's" in document["error"]
    client.delete_model_version(NAME, "1")  # empty: made beforehand, for instance to give rights on it
    assert gate("promote", "--run-id", run_id)[1]["model_version"] == "2"
    assert registry.model_names(client) == [NAME]


class OfAServer:
    """A client that says that it speaks to a server, where users have rights."""

    tracking_uri = "http://somewhere"

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_asking_for_rights_does_not_take_a_model_over(world: World, models: dict[str, Path]) -> None:
    """An empty registered model becomes ours with its first version, not by a command that may block."""
    client: Any = OfAServer(world.client)
    client.create_registered_model(NAME, tags={"whose": "somebody's"}, description="kept free")
    require_right_to_change(client, NAME, world.trial(models["bad"]), removes=True)
    model = client.get_registered_model(NAME)
    assert (model.tags, model.description, model.aliases) == ({"whose": "somebody's"}, "kept free", {})


def test_alias_that_moves_after_the_lease_was_lost_goes_back(
    world: World, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback stands still between its last look at the lease and the alias, while another process decides."""
    _forced(world, tmp_path, 2)
    promote_alias = registry.promote_alias

    def stand_still(*arguments: Any) -> None:
        monkeypatch.setattr(registry, "promote_alias", promote_alias)
        ticket = world.client.search_model_versions(f"name='{NAME}{lease.SUFFIX}'")[0]
        world.client.set_model_version_tag(ticket.name, str(ticket.version), lease.STATE, "expired")
        assert promotion.promote(world.client, run_id=world.trial(models["good"])).model_version == "3"
        promote_alias(*arguments)

    monkeypatch.setattr(registry, "promote_alias", stand_still)
    with pytest.raises(LeaseLost):
        promotion.rollback(world.client, NAME)
    assert _aliases(world) == {"production": "3", "previous": "2"}
    decisions = [entry["decision"] for entry in audit.history(world.client, NAME)]
    assert decisions[:2] == ["promoted", audit.UNDONE]


@ON_SQLITE_ALONE
def test_decision_that_another_finished_meanwhile_is_done(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, but it stands still after its alias has moved: the next one finishes it first."""
    promote_alias = registry.promote_alias

    def stand_still(*arguments: Any) -> None:
        monkeypatch.setattr(registry, "promote_alias", promote_alias)
        promote_alias(*arguments)
        ticket = world.client.search_model_versions(f"name='{NAME}{lease.SUFFIX}'")[0]
        world.client.set_model_version_tag(ticket.name, str(ticket.version), lease.STATE, "expired")
        assert promotion.promote(world.client, run_id=world.trial(models["good-too"])).model_version == "2"

    monkeypatch.setattr(registry, "promote_alias", stand_still)
    first = promotion.promote(world.client, run_id=world.trial(models["good"]))
    assert (first.decision, first.model_version) == ("promoted", "1")
    assert _aliases(world) == {"production": "2", "previous": "1"}
    assert [entry["decision"] for entry in audit.history(world.client, NAME)] == ["promoted", "promoted"]


class ReadOnly:
    """A client whose user may only read."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("get_", "search_", "list_", "download_", "tracking_uri")):
            return getattr(self._client, name)

        def refuse(*_: object, **__: object) -> None:
            raise MlflowException("Permission denied", PERMISSION_DENIED)

        return refuse


@ON_SQLITE_ALONE
def test_reader_sees_everything_and_leaves_repairs_to_others(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def fails(*_: object) -> None:
        raise RuntimeError("the disk is full")

    candidate = world.trial(models["good"])
    reader: Any = ReadOnly(world.client)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "finish", fails)
        with pytest.raises(RuntimeError, match="the disk is full"):
            promotion.promote(world.client, run_id=candidate)
    (entry,) = audit.history(reader, NAME)
    world.client.set_tag(entry["decision_id"], names.OWNER, "/".join([*names.owner_tags()[names.OWNER].split("/")[:2],
                                                                      "999999999", "1"]))  # fmt: skip
    with caplog.at_level(logging.WARNING):
        status = promotion.status(reader, NAME)
    assert "is left to others: no permission" in caplog.text
    assert status["decisions"][0]["decision"] == "in_progress"
    assert status["production_version"] == "1"
    assert promotion.check(reader, run_id=world.trial(models["good-too"])).passed
    assert promotion.status(world.client, NAME)["decisions"][0]["decision"] == "promoted"


def test_promotion_with_its_rollback_is_not_nothing(world: World, models: dict[str, Path]) -> None:
    """They leave the aliases as they were, but a judgement from before them does not hold any more."""
    client = world.client
    assert promotion.promote(client, run_id=world.trial(models["good"])).passed
    assert promotion.promote(client, run_id=world.trial(models["good-too"]), alias="challenger").passed
    before = registry.state(client, NAME)
    promotion.promote(client, settings=world.settings, version="2")
    promotion.rollback(client, NAME)
    client.set_registered_model_alias(NAME, "challenger", "2")
    after = registry.state(client, NAME)
    assert after.aliases == before.aliases
    assert after != before
