"""The service on several nodes: a replica on each, and one of the nodes lost under load."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from ray.cluster_utils import Cluster

from configs.schema import Settings
from serve_app.mode import fast_path, fast_path_variables
from tests.e2e.nodes import NODE, nodes_of, running_head
from tests.e2e.processes import Command
from tests.integration.serving.world import Hammer, Registry, Service, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
CLASSIFIER = "ServeReplica:trialgate:classifier"
CLIENTS = 4


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with fast_path(), running_head(fast_path_variables()) as made:
        yield made


@pytest.fixture
def service(head: Cluster, mlflow_template: Path, tmp_path: Path) -> Iterator[Service]:
    """Two classifiers on two nodes, whose only CPU each of them takes; HAProxy runs on the head alone, because on one
    machine those of several nodes would want the same port."""
    database, port = tmp_path / "mlflow.db", free_port()
    shutil.copyfile(mlflow_template, database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", ((tmp_path / "artifacts").as_uri(),))
    connection.close()
    registry = Registry(f"sqlite:///{database}", tmp_path)
    version = registry.register()
    registry.promote(version)
    deployed = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "trialgate",
                "route_prefix": "/",
                "import_path": "serve_app.app:build",
                "args": {
                    "config": "serving.yaml",
                    "home": str(tmp_path / "home"),
                    "tracking.uri": registry.uri,
                    "serving.min_replicas": 2,
                    "serving.max_replicas": 2,
                    "serving.poll_interval_s": 1.0,
                },
            }
        ],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(deployed))
    for _ in range(2):
        head.add_node(**NODE)
    where = {"RAY_ADDRESS": head.address}
    command = Command("ray.serve.scripts", "run", "serve.yaml", cwd=tmp_path, environment=where)
    running = Service(f"http://127.0.0.1:{port}", Settings(), registry, version)
    try:
        command.until(lambda: ready(running) == 2, 250, "two replicas that are ready")
        yield running
    finally:
        command.process.terminate()
        command.finished(90)


def ready(service: Service) -> int:
    """Classifiers that can answer; 0 while nobody listens."""
    try:
        found: int = service.client.get("/ready").json().get("ready_replicas", 0)
    except (httpx.HTTPError, ValueError):
        return 0
    return found


def test_a_node_lost_under_load_costs_what_its_replica_had_in_work(head: Cluster, service: Service) -> None:
    nodes = nodes_of(head, CLASSIFIER)
    assert sorted(nodes) == sorted(node.node_id for node in head.worker_nodes), "a replica on each node"
    victim = next(node for node in head.worker_nodes if node.node_id == nodes[0])
    with Hammer(service, threads=CLIENTS) as load:
        load.wait_for_more()
        head.remove_node(victim, allow_graceful=False)
        lost_at = time.monotonic()
        load.wait_for_more()
        alone_s = time.monotonic() - lost_at
        # The one that is left carries the service. A new node takes the place of the lost one.
        added = head.add_node(**NODE).node_id
        wait_until(lambda: added in nodes_of(head, CLASSIFIER) and ready(service) == 2, 200, lambda: ready(service))
        whole_s = time.monotonic() - lost_at
        load.wait_for_more()
    print(f"{len(load.answers)} answered, {len(load.failures)} failed: {load.failures}; 20 answers more after "
          f"{alone_s:.1f} s, two replicas after {whole_s:.0f} s")  # fmt: skip
    assert len(load.failures) <= CLIENTS, load.failures
    assert all("Error" in failure or failure.startswith("5") for failure in load.failures), load.failures
