"""Nodes of a cluster: it grows while a search waits for it, loses one while it runs, and has one without memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from configs.exit_codes import ExitCode
from tests.e2e.nodes import NODE, epochs, running_head, searching, trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A head without processors for trials."""
    with running_head({}) as made:
        yield made


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head alone; what a test adds is removed."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
    head.wait_for_nodes(timeout=120)  # until Ray knows, or the next search counts on them


def test_a_search_waits_for_nodes_and_outlives_one(cluster: Cluster, home: Path) -> None:
    changes = {"training__epochs": "12", "data__generator": "{texts: 1200, test_texts: 80}"}
    command = searching(cluster, home, search__cluster_wait_s="300", **changes)
    command.wait_for("waiting for the cluster to hold a trial", 120)
    lost = cluster.add_node(**NODE)
    journal = home / "searches" / "s" / "journal.jsonl"

    def reported() -> dict[str, list[int]]:
        return epochs(journal.read_text().splitlines()) if journal.exists() else {}

    command.until(lambda: len(reported()) == 1, 200, "an epoch")  # of the one trial that has a place
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(**NODE)
    command.wait_for("goes on from its last epoch", 120)
    cluster.add_node(**NODE)
    assert command.finished(300) == ExitCode.OK, command.output
    assert trials(home) == {"finished": 2, "stopped_early": 0, "failed": 0}
    assert list(reported().values()) == [list(range(1, 13))] * 2


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
