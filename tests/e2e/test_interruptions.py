"""Ctrl-C, SIGTERM and kill -9 in the middle of a search: nothing keeps running, and every run ends as what it is."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.exit_codes import ExitCode
from ray_jobs.parent_run import end_orphans
from serve_app import mlflow_client as names
from tests.conftest import RayCluster
from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments, small_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def started(home: Path, tmp_path: Path, name: str, until: str = "epoch 2/500") -> Command:
    """A search that has many epochs to go, in the middle of one or where it says ``until``."""
    values = SMALL | {"home": str(home), "search.name": name, "training.epochs": "500", "search.scheduler": "none"}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    command = Command("ray_jobs.search", "--config", "quickstart.yaml", *sets, cwd=tmp_path)
    command.wait_for(until, 150)
    return command


def statuses(home: Path) -> tuple[MlflowClient, list[str]]:
    client = names.connect(small_settings(home).tracking)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    kinds = (names.KIND_SEARCH, names.KIND_TRIAL)
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags[names.KIND] in kinds]
    return client, [run.info.status for run in runs]


def test_a_living_search_is_no_orphan_and_ends_when_asked(home: Path, tmp_path: Path) -> None:
    """By SIGTERM; Ctrl-C is what the next tests end it by."""
    command = started(home, tmp_path, "asked")
    client, found = statuses(home)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    assert "RUNNING" in found
    assert end_orphans(client, experiment.experiment_id) == []
    command.send(signal.SIGTERM)
    assert command.finished(30) == ExitCode.INTERRUPTED, command.output
    assert command.left_behind(10) == []
    _, found = statuses(home)
    assert set(found) == {"KILLED"}
    assert len(found) >= 2
    assert "--resume asked" in command.output
    assert "Traceback" not in command.output


@pytest.mark.parametrize("moment", ["tokenised 240 texts", "begins with"])
def test_asked_to_end_before_the_first_epoch(home: Path, tmp_path: Path, moment: str) -> None:
    """While Ray starts, and while the first trials do."""
    command = started(home, tmp_path, "early", until=moment)
    command.send(signal.SIGINT)
    assert command.finished(60) == ExitCode.INTERRUPTED, command.output
    assert command.left_behind(10) == []
    assert "Traceback" not in command.output
    assert "epoch 1/500" not in command.output, "the test came too late"
    if moment == "begins with":
        _, found = statuses(home)
        assert set(found) == {"KILLED"}


def test_killed_ended_by_the_next_command_and_resumed(home: Path, tmp_path: Path, ray_cluster: RayCluster) -> None:
    """What comes after it runs on the session's Ray, which takes no time to start."""
    changes = {"training.epochs": "8", "search.trials": "2", "search.scheduler": "none", "search.max_concurrent": "1"}
    values = SMALL | {"home": str(home), "search.name": "again"} | changes

    def searching(values: dict[str, str], *more: str, **environment: str) -> Command:
        sets = [part for text in arguments(values) for part in ("--set", text)]
        command = ("--config", "quickstart.yaml", *sets, *more)
        return Command("ray_jobs.search", *command, cwd=tmp_path, environment=environment)

    command = searching(values)
    command.wait_for("finished, best validation F1", 200)
    first = command.output.rindex("finished, best")
    command.wait_for_after(first, "epoch 3/8", 100)
    command.send(signal.SIGKILL)
    command.finished(10)
    assert command.left_behind(10) == []
    _, found = statuses(home)
    assert "RUNNING" in found

    elsewhere = {"RAY_ADDRESS": ray_cluster.address}
    another = SMALL | {"home": str(home), "search.trials": "1", "training.epochs": "1"}
    following = searching(another, **elsewhere)
    assert following.finished(150) == ExitCode.OK, following.output
    assert "had lost its process: ended as KILLED" in following.output
    _, found = statuses(home)
    assert "RUNNING" not in found
    assert found.count("FINISHED") == 3  # the following search, its trial, and the one that was over

    refused = searching(values | {"training.epochs": "3"}, "--resume", "again")
    assert refused.finished(60) == ExitCode.USAGE
    assert "settings differ" in refused.output

    out = tmp_path / "result.json"
    resumed = searching(values, "--resume", "again", "--json-file", str(out), **elsewhere)
    assert resumed.finished(300) == ExitCode.OK, resumed.output
    told = [line for line in resumed.output.splitlines() if re.search(r"epoch \d/8", line)]
    assert 1 <= len(told) <= 5, "the finished trial is not run again, and the other goes on from its last epoch"
    assert json.loads(out.read_text())["trials"] == {"finished": 2, "stopped_early": 0, "failed": 0}
    _, found = statuses(home)
    assert found == ["FINISHED"] * 5  # of each a parent, and of this one two trials, none twice
    assert Path(json.loads(out.read_text())["model_uri"]).is_dir()
