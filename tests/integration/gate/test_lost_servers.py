"""MLflow's server, or the PostgreSQL behind it, is lost in the middle of a promotion, and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.exit_codes import ExitCode
from configs.schema import TrackingConfig
from gate import audit, registry
from serve_app import mlflow_client as names
from serve_app.mlflow_client import connect
from tests.integration.gate.conftest import Gate
from tests.integration.gate.forwarder import Forwarder
from tests.integration.gate.test_interruptions import assert_nothing_half_done
from tests.integration.gate.world import World, make_world
from tests.servers import MlflowServer, PostgreSQL

NAME = "trialgate-classifier"
ONLY_SERVER = pytest.mark.parametrize("tracking_uri", ["server"], indirect=True)


def _promote(uri: str, run_id: str) -> tuple[int, dict[str, Any], str]:
    """A process of its own: what it leaves behind is nobody's any more. Exit code, document, standard error."""
    command = [sys.executable, "-m", "gate", "promote", "--run-id", run_id, "--json"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "TRIALGATE_TRACKING__MAX_RETRIES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def _at(method: str, path: str, after: str = "") -> Callable[[str, str], bool]:
    """Says which request is the last: the first one like this, from the first one with ``after`` in its path on."""
    reached = not after

    def is_last(its_method: str, its_path: str) -> bool:
        nonlocal reached
        reached = reached or after in its_path
        return reached and its_method == method and path in its_path

    return is_last


@ONLY_SERVER
@pytest.mark.parametrize(
    ("is_last", "answer_lost", "happens"),
    [
        pytest.param(_at("POST", "runs/log-batch"), False, False, id="score", marks=pytest.mark.slow),
        pytest.param(_at("POST", "model-versions/create"), True, False, id="lease", marks=pytest.mark.slow),
        pytest.param(_at("POST", "runs/create"), True, False, id="decision", marks=pytest.mark.slow),
        pytest.param(_at("PUT", "model.safetensors"), False, False, id="artifact", marks=pytest.mark.slow),
        pytest.param(_at("POST", "model-versions/create", "model.safetensors"), True, False, id="version",
                     marks=pytest.mark.slow),
        pytest.param(_at("POST", "registered-models/alias"), False, False, id="alias", marks=pytest.mark.slow),
        pytest.param(_at("POST", "registered-models/alias"), True, True, id="alias, answer lost"),
        pytest.param(_at("POST", "runs/update", "registered-models/alias"), False, True, id="end",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_server_that_is_lost_half_way(
    world: World,
    models: dict[str, Path],
    gate: Gate,
    is_last: Callable[[str, str], bool],
    answer_lost: bool,
    happens: bool,
) -> None:
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0
    candidate = world.trial(models["good-too"])
    with Forwarder(world.uri, is_last, answer_lost=answer_lost) as way:
        code, document, printed = _promote(way.uri, candidate)
    assert way.is_lost
    assert code == ExitCode.UNREACHABLE, printed
    assert "MLflow or its storage was lost" in document["error"]
    assert "Traceback" not in printed

    assert gate("status")[1]["production_version"] == ("2" if happens else "1")
    assert_nothing_half_done(world, audit.history(world.client, NAME))
    assert (names.DECISION in world.client.get_run(candidate).data.tags) is happens
    code, decision = gate("promote", "--run-id", candidate)
    assert (code, decision["decision"], decision["changed"]) == (0, "promoted", not happens)
    assert registry.aliases(world.client, NAME)["production"] == decision["model_version"]


@pytest.mark.slow
@ONLY_SERVER
def test_server_that_is_killed_half_way_and_started_again(
    world: World, models: dict[str, Path], gate: Gate, mlflow_server: MlflowServer
) -> None:
    candidate = world.trial(models["good"])
    with Forwarder(world.uri, _at("POST", "registered-models/alias"), lost=mlflow_server.kill) as way:
        code, document, printed = _promote(way.uri, candidate)
    try:
        assert way.is_lost
        assert (code, "was lost" in document["error"]) == (ExitCode.UNREACHABLE, True), printed
        code, document = gate("status")
        assert code == ExitCode.UNREACHABLE
        assert f"MLflow at {world.uri} cannot be used" in document["error"]
    finally:
        mlflow_server.start()
    status = gate("status")[1]
    assert status["production_version"] is None
    assert [entry["decision"] for entry in status["decisions"]] == [audit.UNDONE]
    assert gate("promote", "--run-id", candidate)[1]["decision"] == "promoted"


@pytest.mark.slow
def test_database_that_crashes_under_the_server(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgresql = PostgreSQL()
    server = None
    try:
        server = MlflowServer(postgresql.create_database("mlflow"), tmp_path / "server", workers=1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        world = make_world(connect(TrackingConfig(uri=server.uri)), server.uri, tmp_path)
        assert world.client.search_registered_models() == []  # the server's workers open that store on first use
        first, second = world.trial(models["good"]), world.trial(models["good-too"])
        with Forwarder(
            server.uri, _at("POST", "logged-models", "runs/create"), answer_lost=True, lost=postgresql.stop
        ) as way:
            code, document, printed = _promote(way.uri, first)
        assert way.is_lost
        assert (code, "was lost" in document["error"]) == (ExitCode.UNREACHABLE, True), printed
        code, document, printed = _promote(server.uri, second)
        assert code == ExitCode.UNREACHABLE
        assert f"MLflow at {server.uri} cannot be used" in document["error"]
        assert postgresql.password not in json.dumps(document) + printed
        postgresql.start()
        code, document, _ = _promote(server.uri, second)
        assert (code, document["model_version"]) == (0, "1")
        assert [entry["decision"] for entry in audit.history(world.client, NAME)] == ["promoted", audit.UNDONE]
    finally:
        if server is not None:
            server.kill()
        postgresql.remove()
