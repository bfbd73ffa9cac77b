"""Nodes of a cluster: it grows while a search waits for it, loses one while it runs, and has one without memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from configs.exit_codes import ExitCode
from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without processors for trials."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        monkeypatch.setenv("RAY_TMPDIR", folder)  # it writes its address there, for whoever asks Ray for "auto"
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield made
        finally:
            made.shutdown()


def test_a_search_waits_for_nodes_and_outlives_one(cluster: Cluster, tmp_path: Path) -> None:
    values = SMALL | {
        "home": str(tmp_path / "home"),
        "search.name": "nodes",
        "search.trials": "2",
        "search.max_concurrent": "2",
        "search.scheduler": "none",
        "search.cluster_wait_s": "300",
        "training.epochs": "60",
        "data.generator": "{texts: 1200, test_texts: 80}",
    }
    sets = [part for text in arguments(values) for part in ("--set", text)]
    out = tmp_path / "result.json"
    command = Command(
        "ray_jobs.search", "--config", "quickstart.yaml", *sets, "--json-file", str(out),
        cwd=tmp_path, environment={"RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    command.wait_for("waiting for the cluster to hold a trial", 120)
    node = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    cluster.add_node(**node)
    lost = cluster.add_node(**node)
    journal = tmp_path / "home" / "searches" / "nodes" / "journal.jsonl"

    def epochs() -> dict[str, list[int]]:
        events = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        found: dict[str, list[int]] = {}
        for event in events:
            if event["event"] == "epoch":
                found.setdefault(event["trial"], []).append(event["metrics"]["epoch"])
        return found

    command.until(lambda: len(epochs()) == 2, 200, "an epoch of both trials")
    cluster.remove_node(lost, allow_graceful=False)
    command.wait_for("goes on from its last epoch", 120)
    cluster.add_node(**node)
    assert command.finished(300) == ExitCode.OK, command.output
    assert json.loads(out.read_text())["trials"] == {"finished": 2, "stopped_early": 0, "failed": 0}
    assert list(epochs().values()) == [list(range(1, 61))] * 2


def test_a_trial_on_a_node_without_memory_fails_for_that_reason(cluster: Cluster, tmp_path: Path) -> None:
    values = SMALL | {
        "home": str(tmp_path / "home"),
        "search.name": "memory",
        "search.trials": "2",
        "search.max_concurrent": "2",
        "search.max_failures": "0",
        "search.scheduler": "none",
        "training.epochs": "1",
    }
    node = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    cluster.add_node(**node)
    # Ray kills what works on this one, because more than this share of the machine's memory is always in use.
    cluster.add_node(**node, env_vars={"RAY_memory_usage_threshold": "0.001"})
    cluster.wait_for_nodes()
    sets = [part for text in arguments(values) for part in ("--set", text)]
    out = tmp_path / "result.json"
    command = Command(
        "ray_jobs.search", "--config", "quickstart.yaml", *sets, "--json-file", str(out),
        cwd=tmp_path, environment={"RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    assert command.finished(300) == ExitCode.OK, command.output
    assert json.loads(out.read_text())["trials"] == {"finished": 1, "stopped_early": 0, "failed": 1}
    (told,) = [line for line in command.output.splitlines() if ": failed: " in line]
    assert "1 worker(s) were killed due to the node running low on memory. Memory on the node" in told
    assert "Traceback" not in command.output
    (whole,) = tmp_path.glob("home/searches/memory/tune-*/*/error.txt")
    assert "ray_jobs/trial.py" in whole.read_text()
