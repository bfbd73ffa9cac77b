"""A real MLflow server that hangs, is killed, and comes back or not, in the middle of a search."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.exit_codes import ExitCode
from serve_app import mlflow_client as names
from tests.conftest import RayCluster
from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments, small_settings
from tests.servers import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NUMBERS = ("train_loss", "validation_f1", "system/cpu_seconds")


@pytest.fixture(scope="module")
def server(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """On a SQLite database that needs no migration. Whoever kills it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(mlflow_template, folder / "server.db")
    made = MlflowServer(f"sqlite:///{folder}/server.db", folder, workers=1)
    yield made
    made.kill()


class World:
    """One search of two trials against the server, in an experiment of its own, on the session's Ray."""

    def __init__(self, server: MlflowServer, cluster: RayCluster, folder: Path) -> None:
        self.server, self._cluster, self._folder = server, cluster, folder
        self.epochs, self._experiment = 12, folder.name
        self.commands: list[Command] = []
        self.journal = folder / "home" / "searches" / "s" / "journal.jsonl"

    def command(self, *more: str) -> Command:
        values = SMALL | {
            "home": str(self._folder / "home"),
            "tracking.uri": self.server.uri,
            "tracking.experiment": self._experiment,
            "tracking.request_timeout_s": "2",
            "tracking.max_retries": "1",
            "search.name": "s",
            "search.trials": "2",
            "search.scheduler": "none",
            "training.epochs": str(self.epochs),
        }
        sets = [part for text in arguments(values) for part in ("--set", text)]
        where = {"RAY_ADDRESS": self._cluster.address}
        arguments_ = ["--config", "quickstart.yaml", *sets, *more]
        self.commands.append(Command("ray_jobs.search", *arguments_, cwd=self._folder, environment=where))
        return self.commands[-1]

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = self.journal.read_text().split("\n")[:-1] if self.journal.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for_epochs(self, command: Command, more: int) -> None:
        """Waits until the search has had so many further epochs, whichever trial's."""
        before = len(self.events("epoch"))
        command.until(lambda: len(self.events("epoch")) >= before + more, 150, f"{more} epochs")
        assert len(self.events("ended")) < 2, "the test needs a search that goes on for longer"

    def assert_nothing_is_missing(self) -> MlflowClient:
        client = names.connect(small_settings(self._folder, self.server.uri).tracking)
        experiment = client.get_experiment_by_name(self._experiment)
        assert experiment is not None
        runs = {kind: client.search_runs([experiment.experiment_id], f"tags.`{names.KIND}` = '{kind}'")
                for kind in (names.KIND_SEARCH, names.KIND_TRIAL)}  # fmt: skip
        (parent,) = runs[names.KIND_SEARCH]
        assert parent.info.status == "FINISHED"
        assert names.OUTCOME not in parent.data.tags
        assert len(runs[names.KIND_TRIAL]) == 2
        best = {run.info.run_id: run.data.metrics["best_validation_f1"] for run in runs[names.KIND_TRIAL]}
        assert best[parent.data.tags[names.BEST_RUN]] == max(best.values())
        told = {event["trial"]: {} for event in self.events("started")}
        for event in self.events("epoch"):
            told[event["trial"]][event["metrics"]["epoch"]] = event["metrics"]
        for run in runs[names.KIND_TRIAL]:
            assert run.info.status == "FINISHED"
            assert run.data.tags[names.OUTCOME] == "finished"
            epochs = told[run.data.tags[names.TRIAL_ID]]
            assert sorted(epochs) == list(range(1, self.epochs + 1))
            for metric in NUMBERS:
                points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
                assert sorted(points) == [(epoch, metrics[metric]) for epoch, metrics in epochs.items()], metric
        return client


@pytest.fixture
def world(server: MlflowServer, ray_cluster: RayCluster, tmp_path: Path) -> Iterator[World]:
    made = World(server, ray_cluster, tmp_path)
    yield made
    for command in made.commands:
        command.process.kill()  # after a test that failed; the others have ended


def test_a_server_that_hangs_is_killed_and_comes_back_misses_nothing(world: World) -> None:
    world.epochs = 36
    command = world.command()
    world.wait_for_epochs(command, 1)
    world.server.send(signal.SIGSTOP)
    world.wait_for_epochs(command, 12)  # training does not wait for it
    world.server.send(signal.SIGCONT)
    world.wait_for_epochs(command, 1)
    world.server.kill()
    world.wait_for_epochs(
        command, 4
    )  # its start takes long on a busy machine, and the search waits for 20 s at its end
    world.server.start()
    assert command.finished(150) == ExitCode.OK, command.output
    assert command.output.count("results wait in the journal") == 1
    world.assert_nothing_is_missing()


def test_a_server_that_stays_away_gets_the_rest_on_resume(world: World) -> None:
    command = world.command()
    world.wait_for_epochs(command, 1)
    world.server.kill()
    assert command.finished(150) == ExitCode.UNREACHABLE, command.output
    assert "When MLflow is back: --resume s" in command.output
    assert "Traceback" not in command.output
    assert len(world.events("ended")) == 2
    before = world.journal.read_bytes()

    world.server.start()
    resumed = world.command("--resume", "s")
    assert resumed.finished(150) == ExitCode.OK, resumed.output
    assert world.journal.read_bytes() == before, "no trial runs again"
    world.assert_nothing_is_missing()
