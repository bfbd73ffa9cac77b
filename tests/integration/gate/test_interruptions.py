"""A gate command that is cut off anywhere leaves nothing half done once the next one has run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from gate import audit, carry_out, lease, promotion, prune, registry
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import Gate
from tests.integration.gate.world import World
from tests.tiny import write_tiny_model

NAME = "trialgate-classifier"
LEASE = f"{NAME}{lease.SUFFIX}"
DEAD = f"{'/'.join(names.owner_tags()[names.OWNER].split('/')[:2])}/999999999/1"
_READS = ("get_", "search_", "list_", "download_", "tracking_uri")


class Dying:
    """A client whose machine is lost at write number ``at`` after the judgement (0: the first, which makes or takes the
    lease): that call and all after it never arrive. Heartbeats are not counted."""

    def __init__(self, client: MlflowClient, at: int) -> None:
        self._client, self._at, self.writes = client, at, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if name.startswith("tracking_uri"):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            main = threading.current_thread() is threading.main_thread()
            if main and (name.startswith("create_") or (self.writes and not name.startswith(_READS))):
                self.writes += 1
            if self.writes > self._at:
                raise requests.ConnectionError("the network is gone")
            return value(*args, **kwargs)

        return call


def _cut_off(world: World, command: Callable[[Any], object]) -> Iterator[None]:
    """Runs the command with its machine lost at each of its writes in turn, until it is through without. Yields after
    each, when nobody lives who could go on with it. On a server, where a command takes several times as long, at every
    fourth: which writes there are, and in which order, does not depend on the store."""
    client = world.client
    for at in range(0, 100, 1 if world.uri.startswith("sqlite") else 4):
        dying = Dying(client, at)
        with contextlib.suppress(requests.ConnectionError):
            command(dying)
        # The process that was cut off is this one; only in the test it is still alive.
        experiment = client.get_experiment_by_name(audit.EXPERIMENT)
        for run in (
            client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'") if experiment else []
        ):
            client.set_tag(run.info.run_id, names.OWNER, DEAD)
        for ticket in client.search_model_versions(f"name = '{LEASE}' and tags.`{lease.STATE}` = '{lease.OPEN}'"):
            client.set_model_version_tag(LEASE, str(ticket.version), names.OWNER, DEAD)
        yield
        if dying.writes <= at:
            assert at > 8
            return
    raise AssertionError("the command never gets through")


def assert_nothing_half_done(world: World, entries: list[dict[str, Any]]) -> None:
    """No decision is open, no process holds the lease or waits for it, and every logged model has its version."""
    client = world.client
    assert all(entry["decision"] != "in_progress" for entry in entries)
    logged = {str(item.model_id) for item in client.search_logged_models([world.experiment_id])}
    assert logged == {str(version.source).removeprefix("models:/") for version in registry.versions(client, NAME)}
    tickets = client.search_model_versions(f"name = '{LEASE}'")
    assert all(names.is_owner_gone(ticket.tags) for ticket in tickets)


def _assert_whole(world: World, before: str | None, after: str, candidate: str) -> bool:
    """Either nothing happened or all of it. Returns which."""
    client = world.client
    entries = audit.history(client, NAME)
    assert_nothing_half_done(world, entries)
    model = registry.find_model(client, NAME)
    assert model is not None
    production = str(model.aliases["production"])
    tags = client.get_run(candidate).data.tags
    if production == before:
        assert after == before
        assert names.DECISION not in tags
        assert not entries or entries[0]["decision"] == audit.UNDONE or entries[0]["model_version"] == before
        return False
    assert production == after
    version = client.get_model_version(NAME, production)
    assert entries[0]["decision"] in ("promoted", "forced")  # the models are random: some pass
    assert version.tags[names.DECISION_ID] == entries[0]["decision_id"] == tags[names.DECISION_ID]
    assert str(model.aliases["previous"]) == before
    assert version.tags[names.PRODUCTION_SINCE]
    return True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_promotion_cut_off_at_every_write(world: World, models: dict[str, Path], tmp_path: Path) -> None:
    client: Any = world.client
    assert promotion.promote(client, run_id=world.trial(models["good"])).passed
    before, outcomes = "1", []
    candidates = []

    def promote(dying: Any) -> None:
        if not outcomes or outcomes[-1]:  # else nothing has become of the last one
            folder = tmp_path / f"model-{len(candidates)}"
            candidates.append(world.trial(write_tiny_model(folder, seed=len(candidates))))
        promotion.promote(dying, run_id=candidates[-1], force=True, reason="r")

    for _ in _cut_off(world, promote):
        carry_out.repair(client)
        assert carry_out.repair(client) == []
        after = str(max(int(v.version) for v in registry.versions(client, NAME)))
        outcomes.append(_assert_whole(world, before, after, candidates[-1]))
        before = after
    assert promotion.promote(client, run_id=candidates[-1]).changed is False
    assert outcomes == sorted(outcomes)  # until one write nothing happens, from then on everything
    assert {True, False} == set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rollback_cut_off_at_every_write(world: World, models: dict[str, Path]) -> None:
    client: Any = world.client
    for name in ("good", "bad", "good-too"):
        promotion.promote(client, run_id=world.trial(models[name]), force=True, reason="r")
    outcomes = []
    for _ in _cut_off(world, lambda dying: promotion.rollback(dying, NAME)):
        status = promotion.status(client, NAME)
        rolled_back = [v["version"] for v in status["versions"] if v["rolled_back"]]
        happened = status["production_version"] == "2"
        assert rolled_back == (["3"] if happened else [])
        assert status["production_version"] == ("2" if happened else "3")
        assert status["previous_version"] == ("1" if happened else "2")
        assert status["decisions"][0]["decision"] in (
            ("rolled_back",) if happened else (audit.UNDONE, "promoted", "forced")
        )
        outcomes.append(happened)
        if happened:
            assert promotion.promote(client, settings=world.settings, version="3", force=True, reason="r").passed
    assert outcomes == sorted(outcomes)
    assert {True, False} == set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_challenger_cut_off_at_every_write(world: World, models: dict[str, Path], tmp_path: Path) -> None:
    client: Any = world.client
    promotion.promote(client, run_id=world.trial(models["good"]))
    candidates, outcomes, before = [], [], None

    def promote(dying: Any) -> None:
        if not outcomes or outcomes[-1]:
            folder = tmp_path / f"model-{len(candidates)}"
            candidates.append(world.trial(write_tiny_model(folder, seed=len(candidates))))
        promotion.promote(dying, run_id=candidates[-1], alias="challenger", force=True, reason="r")

    for _ in _cut_off(world, promote):
        status = promotion.status(client, NAME)
        challenger, newest = status["challenger_version"], status["decisions"][0]
        happened = challenger != before
        assert (status["production_version"], status["previous_version"]) == ("1", None)
        tags = client.get_run(candidates[-1]).data.tags
        assert tags.get(names.DECISION) == ("forced" if happened else None)
        if happened:
            assert (newest["model_version"], newest["alias"]) == (challenger, "challenger")
            assert status["challenger"]["decision_id"] == newest["decision_id"]
        assert len(status["versions"]) == 1 + sum(outcomes) + happened
        assert len(client.search_logged_models([world.experiment_id])) == len(status["versions"])
        outcomes.append(happened)
        before = challenger
    assert outcomes == sorted(outcomes)
    assert {True, False} == set(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prune_cut_off_at_every_write(world: World, tmp_path: Path) -> None:
    client: Any = world.client

    def promote_one_more() -> list[str]:
        seed = len(list(tmp_path.glob("model-*")))
        model = write_tiny_model(tmp_path / f"model-{seed}", seed=seed)
        promotion.promote(client, run_id=world.trial(model), force=True, reason="r")
        return [str(version.version) for version in registry.versions(client, NAME)]

    there = [promote_one_more() for _ in range(3)][-1]
    outcomes = []
    for _ in _cut_off(world, lambda dying: prune.prune(dying, NAME, keep=1)):
        status = promotion.status(client, NAME)
        left = [version["version"] for version in status["versions"]]
        happened = left != there
        assert left == (there[1:] if happened else there)
        assert left[-2:] == [status["previous_version"], status["production_version"]]
        newest = status["decisions"][0]
        if happened:
            assert (newest["decision"], newest["versions"]) == ("pruned", there[:1])
        else:
            assert newest["decision"] in ("promoted", "forced", audit.UNDONE)
        assert len(client.search_logged_models([world.experiment_id])) == len(left)
        outcomes.append(happened)
        there = promote_one_more() if happened else there
    assert {True, False} == set(outcomes)


def test_error_in_the_middle_is_undone_at_once(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no alias today")

    candidate = world.trial(models["good"])
    with monkeypatch.context() as patched:
        patched.setattr(registry, "promote_alias", fails)
        with pytest.raises(RuntimeError, match="no alias today"):
            promotion.promote(world.client, run_id=candidate)
    assert registry.model_names(world.client) == []
    assert world.client.search_logged_models([world.experiment_id]) == []
    assert [entry["decision"] for entry in audit.history(world.client, NAME)] == [audit.UNDONE]
    assert promotion.promote(world.client, run_id=candidate).decision == "promoted"


@pytest.mark.parametrize("step", ["promote_alias", "renew_previous"])
def test_killed_process_is_repaired_by_the_next_command(
    world: World, models: dict[str, Path], gate: Gate, step: str
) -> None:
    candidate = world.trial(models["good"])
    program = (
        "import os, signal\n"
        "from gate import registry\n"
        "from gate.__main__ import main\n"
        f"registry.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"main(['promote', '--run-id', '{candidate}'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gate("history")[1]["decisions"][0]["decision"] == "in_progress"
    status = gate("status")[1]
    moved = step == "renew_previous"
    assert status["production_version"] == ("1" if moved else None)
    assert [entry["decision"] for entry in status["decisions"]] == ["promoted" if moved else audit.UNDONE]


def test_running_decision_of_a_live_process_is_left_alone(world: World, models: dict[str, Path]) -> None:
    experiment = names.ensure_experiment(world.client, audit.EXPERIMENT)
    tags = {names.KIND: names.KIND_DECISION, names.MODEL_NAME: NAME, audit.INTENT: "promoted", **names.owner_tags()}
    run_id = world.client.create_run(experiment, tags=tags).info.run_id
    assert carry_out.repair(world.client) == []
    assert world.client.get_run(run_id).info.status == "RUNNING"
    world.client.set_tag(run_id, names.OWNER, "another-machine/1/2/3")
    assert carry_out.repair(world.client) == []  # its heartbeat is fresh
    world.client.set_tag(run_id, names.HEARTBEAT, "1000")
    assert len(carry_out.repair(world.client)) == 1
    assert world.client.get_run(run_id).info.status == "KILLED"
