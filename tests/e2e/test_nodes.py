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

NODE = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A head without processors for trials."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RAY_TMPDIR", folder)  # it writes its address there, for whoever asks Ray for "auto"
            node = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
            made = Cluster(initialize_head=True, head_node_args=node)
            try:
                yield made
            finally:
                made.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head alone; what a test adds is removed."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


def searching(cluster: Cluster, home: Path, **changes: str) -> Command:
    """A search of two trials at a time on the cluster, which leaves its document beside ``home``."""
    folder = home.parent
    values = SMALL | {
        "home": str(home),
        "search.name": "s",
        "search.trials": "2",
        "search.max_concurrent": "2",
        "search.scheduler": "none",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    out = ("--json-file", str(folder / "result.json"))
    where = {"RAY_ADDRESS": cluster.address}
    return Command("ray_jobs.search", "--config", "quickstart.yaml", *sets, *out, cwd=folder, environment=where)


def trials(home: Path) -> dict[str, int]:
    """How the search's trials ended, counts."""
    found: dict[str, int] = json.loads((home.parent / "result.json").read_text())["trials"]
    return found


def test_a_search_waits_for_nodes_and_outlives_one(cluster: Cluster, home: Path) -> None:
    changes = {"training__epochs": "12", "data__generator": "{texts: 1200, test_texts: 80}"}
    command = searching(cluster, home, search__cluster_wait_s="300", **changes)
    command.wait_for("waiting for the cluster to hold a trial", 120)
    lost = cluster.add_node(**NODE)
    journal = home / "searches" / "s" / "journal.jsonl"

    def epochs() -> dict[str, list[int]]:
        events = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        found: dict[str, list[int]] = {}
        for event in events:
            if event["event"] == "epoch":
                found.setdefault(event["trial"], []).append(event["metrics"]["epoch"])
        return found

    command.until(lambda: len(epochs()) == 1, 200, "an epoch")  # of the one trial that has a place
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(**NODE)
    command.wait_for("goes on from its last epoch", 120)
    cluster.add_node(**NODE)
    assert command.finished(300) == ExitCode.OK, command.output
    assert trials(home) == {"finished": 2, "stopped_early": 0, "failed": 0}
    assert list(epochs().values()) == [list(range(1, 13))] * 2


def test_a_trial_on_a_node_without_memory_fails_for_that_reason(cluster: Cluster, home: Path) -> None:
    cluster.add_node(**NODE)
    # Ray kills what works on this one, because more than this share of the machine's memory is always in use.
    cluster.add_node(**NODE, env_vars={"RAY_memory_usage_threshold": "0.001"})
    cluster.wait_for_nodes()
    command = searching(cluster, home, search__max_failures="0", training__epochs="1")
    assert command.finished(300) == ExitCode.OK, command.output
    assert trials(home) == {"finished": 1, "stopped_early": 0, "failed": 1}
    (told,) = [line for line in command.output.splitlines() if ": failed: " in line]
    assert "1 worker(s) were killed due to the node running low on memory. Memory on the node" in told
    assert "Traceback" not in command.output
    (whole,) = home.glob("searches/s/tune-*/*/error.txt")
    assert "ray_jobs/trial.py" in whole.read_text()
