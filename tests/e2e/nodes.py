"""A cluster of several nodes on this machine, what runs on it, and searches on it as commands."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments

NODE = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
# How often Ray asks nodes whether they live. By default it takes 15 s to know of a lost one, with this 2 s; one that is
# busy has as long as ever to answer.
ASKS_NODES = {"RAY_health_check_period_ms": "500"}


@contextlib.contextmanager
def running_head(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """A head without processors for trials; it and all nodes have the ``environment``."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RAY_TMPDIR", folder)  # it writes its address there, for whoever asks Ray for "auto"
            for name, value in (ASKS_NODES | dict(environment)).items():
                patched.setenv(name, value)
            node = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
            made = Cluster(initialize_head=True, head_node_args=node)
            try:
                yield made
            finally:
                made.shutdown()


def nodes_of(cluster: Cluster, actor_class: str, *, alive: bool = True) -> list[str]:
    """The node (id) of every actor of a class, of those that live or of all that ever did, oldest first."""
    actors = cluster.global_state.actor_table(None, None, None).values()
    found = [actor for actor in actors if actor_class in actor["ActorClassName"] and actor["Address"]["NodeID"]]
    found.sort(key=lambda actor: actor["StartTime"])
    return [actor["Address"]["NodeID"] for actor in found if not alive or actor["State"] == "ALIVE"]


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


def epochs(lines: list[str]) -> dict[str, list[int]]:
    """The epochs that a journal's lines tell of, by trial."""
    found: dict[str, list[int]] = {}
    for event in map(json.loads, lines):
        if event["event"] == "epoch":
            found.setdefault(event["trial"], []).append(event["metrics"]["epoch"])
    return found
