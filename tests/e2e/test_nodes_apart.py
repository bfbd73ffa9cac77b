"""Nodes that share no disk: trials beside each other, trials over two nodes, and a node lost under such a trial.

All that they have in common is an object store (``s3://``) and MLflow over http. On this one machine that is seen by
what lies where: every node has a home and a temporary folder of its own, and nothing of a search may be in them, nor
in the home of the command that is not the command's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from configs.exit_codes import ExitCode
from serve_app import mlflow_client as names
from tests.e2e.nodes import NODE, epochs, nodes_of, running_head, searching, trials
from tests.e2e.processes import Command
from tests.s3 import S3
from tests.servers import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
WORKER = "RayTrainWorker"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tracking(s3: S3, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps artifacts in the object store; its clients know nothing of that."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(mlflow_template, folder / "mlflow.db")
    artifacts = ("--artifacts-destination", f"s3://{s3.bucket}/mlflow")
    server = MlflowServer(f"sqlite:///{folder}/mlflow.db", folder, *artifacts, workers=1, environment=s3.environment)
    yield server.uri
    server.kill()


@pytest.fixture(scope="module")
def head(s3: S3) -> Iterator[Cluster]:
    with running_head(s3.environment) as made:
        yield made


@dataclass
class Apart:
    """The cluster, and the folder that has one folder for each node and the home of the commands."""

    cluster: Cluster
    folder: Path
    s3: S3
    tracking: str
    folders: dict[str, str] = field(default_factory=dict)  # of each node, by its id

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def add_node(self) -> str:
        """A node with a home and a temporary folder of its own; returns its id."""
        own = self.folder / f"node{len(self.folders)}"
        variables = {"HOME": own / "home", "TMPDIR": own / "tmp", "XDG_CACHE_HOME": own / "home" / ".cache"}
        for path in variables.values():
            path.mkdir(parents=True)
        node = self.cluster.add_node(**NODE, env_vars={name: str(path) for name, path in variables.items()})
        node_id: str = node.node_id
        self.folders[node_id] = own.name
        return node_id

    def lose_node(self, node_id: str) -> None:
        """As by a power cut."""
        (lost,) = [node for node in self.cluster.worker_nodes if node.node_id == node_id]
        self.cluster.remove_node(lost, allow_graceful=False)

    def search(self, name: str, **changes: str) -> Command:
        """Waits for the nodes, so that the command itself is connected to the head."""
        storage = {"search__storage": f"s3://{self.s3.bucket}/searches", "tracking__uri": self.tracking}
        command = searching(
            self.cluster, self.home, search__name=name, search__cluster_wait_s="300", **storage, **changes
        )
        command.wait_for("waiting for the cluster to hold a trial", 120)
        return command

    def reported(self, name: str) -> dict[str, list[int]]:
        """The epochs in the journal, by trial."""
        key = f"searches/{name}/journal.jsonl"
        if key not in self.s3.keys(f"searches/{name}/journal"):
            return {}
        return epochs(self.s3.client.get_object(Bucket=self.s3.bucket, Key=key)["Body"].read().decode().splitlines())

    def tracked(self, name: str) -> dict[str, list[int]]:
        """The epochs that MLflow has of each trial of the search."""
        client = MlflowClient(self.tracking)
        found = client.search_runs(
            [client.get_experiment_by_name("quickstart").experiment_id],
            f"tags.`{names.KIND}` = '{names.KIND_TRIAL}' and tags.`{names.SEARCH_NAME}` = '{name}'",
        )
        return {
            run.data.tags[names.TRIAL_ID]: [
                point.step for point in client.get_metric_history(run.info.run_id, "validation_f1")
            ]
            for run in found
        }

    def strays(self) -> list[str]:
        """Files of ours where they do not belong: in a node's folders, or below the command's home, which is not used
        by anything when storage and MLflow are elsewhere."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "result.json"]
        return [str(path.relative_to(self.folder)) for path in files if "/.cache/" not in str(path)]


@pytest.fixture
def apart(head: Cluster, s3: S3, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    yield Apart(head, tmp_path, s3, tracking)
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
    head.wait_for_nodes(timeout=120)  # until Ray knows, or the next search counts on them


def test_trials_spread_over_nodes_and_meet_in_the_object_store(apart: Apart) -> None:
    command = apart.search("spread")
    nodes = {apart.add_node(), apart.add_node()}
    seen: set[str] = set()

    def both() -> bool:
        seen.update(nodes_of(apart.cluster, WORKER))
        return seen == nodes

    command.until(both, 200, "a worker on each node")
    assert command.finished(300) == ExitCode.OK, command.output
    assert trials(apart.home) == {"finished": 2, "stopped_early": 0, "failed": 0}
    assert list(apart.reported("spread").values()) == list(apart.tracked("spread").values()) == [[1, 2]] * 2
    assert apart.strays() == []
    result = json.loads((apart.folder / "result.json").read_text())
    assert result["model_uri"].startswith(f"s3://{apart.s3.bucket}/searches/spread/trials/")
    # The gate, a process without any of the folders so far, scores it.
    sets = [f"home={apart.folder / 'other'}", f"tracking.uri={apart.tracking}", "gate.minimum_f1=0.2"]
    options = [part for text in sets for part in ("--set", text)]
    gate = Command(
        "gate", "check", "--config", "quickstart.yaml", "--run-id", result["run_id"], *options, cwd=apart.folder
    )
    assert gate.finished(200) == ExitCode.OK, gate.output


def test_a_trial_over_two_nodes_goes_on_after_the_loss_of_one(apart: Apart) -> None:
    # Enough epochs that a fast machine is not done before it hears of the loss.
    changes = {"training__epochs": "30", "data__generator": "{texts: 1200, test_texts: 80}"}
    two = {"search__workers_per_trial": "2", "search__cpus_per_trial": "2"}
    command = apart.search("pair", search__trials="1", search__max_concurrent="1", **two, **changes)
    first = {apart.add_node(), apart.add_node()}
    command.until(lambda: len(apart.reported("pair")) == 1, 200, "an epoch")
    assert set(nodes_of(apart.cluster, WORKER)) == first, "a worker on each node"
    lost = sorted(first)[0]
    apart.lose_node(lost)
    lost_at, before = time.monotonic(), sum(map(len, apart.reported("pair").values()))
    added = apart.add_node()
    command.until(lambda: sum(map(len, apart.reported("pair").values())) > before + 1, 200, "an epoch after the loss")
    recovered_s = time.monotonic() - lost_at
    assert set(nodes_of(apart.cluster, WORKER)) == first - {lost} | {added}
    assert command.finished(300) == ExitCode.OK, command.output
    assert "goes on from its last epoch" in command.output
    assert trials(apart.home) == {"finished": 1, "stopped_early": 0, "failed": 0}
    # Nothing was lost, and nothing was done or told twice.
    assert list(apart.reported("pair").values()) == list(apart.tracked("pair").values()) == [list(range(1, 31))]
    # The node that was lost had a checkpoint in the making, which died with it; nobody asks for that.
    assert [path for path in apart.strays() if not path.startswith(f"{apart.folders[lost]}/tmp/")] == []
    print(f"an epoch more {recovered_s:.0f} s after the loss of a node, {os.cpu_count()} cores")
