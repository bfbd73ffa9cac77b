"""Ctrl-C, SIGTERM and kill -9 in the middle of a search: nothing keeps running, and every run ends as what it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from configs.exit_codes import ExitCode
from serve_app import mlflow_client as names
from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments, small_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    mlflow.set_tracking_uri(None)


def started(home: Path, tmp_path: Path, name: str, *more: str) -> Command:
    """A search that has many epochs to go, in the middle of one."""
    values = SMALL | {"home": str(home), "search.name": name, "training.epochs": "500", "search.scheduler": "none"}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    command = Command("ray_jobs.search", "--config", "quickstart.yaml", *sets, *more, cwd=tmp_path)
    command.wait_for("epoch 2/500", 150)
    return command


def statuses(home: Path) -> tuple[MlflowClient, list[str]]:
    client = names.connect(small_settings(home).tracking)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    kinds = (names.KIND_SEARCH, names.KIND_TRIAL)
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags[names.KIND] in kinds]
    return client, [run.info.status for run in runs]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = started(home, tmp_path, "asked")
    command.send(number)
    assert command.finished(30) == ExitCode.INTERRUPTED, command.output
    assert command.left_behind(10) == []
    _, found = statuses(home)
    assert set(found) == {"KILLED"}
    assert len(found) >= 2
    assert "--resume asked" in command.output
    assert "Traceback" not in command.output


def test_killed_and_gone_on_with(home: Path, tmp_path: Path) -> None:
    command = started(home, tmp_path, "killed")
    command.send(signal.SIGKILL)
    command.finished(10)
    # Ray's agents look for their cluster for 15 seconds before they give up.
    assert command.left_behind(45) == []
    _, found = statuses(home)
    assert "RUNNING" in found

    values = SMALL | {"home": str(home), "search.trials": "1", "training.epochs": "1"}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    following = Command("ray_jobs.search", "--config", "quickstart.yaml", *sets, cwd=tmp_path)
    assert following.finished(150) == ExitCode.OK, following.output
    assert "had lost its process: ended as KILLED" in following.output
    _, found = statuses(home)
    assert "RUNNING" not in found
    assert found.count("FINISHED") == 2  # the following search and its trial


def test_a_living_search_is_never_taken_for_an_orphan(home: Path, tmp_path: Path) -> None:
    command = started(home, tmp_path, "living")
    client, _ = statuses(home)
    from ray_jobs.tracking import end_orphans

    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    assert end_orphans(client, experiment.experiment_id) == []
    command.send(signal.SIGTERM)
    assert command.finished(30) == ExitCode.INTERRUPTED
    assert command.left_behind(10) == []
