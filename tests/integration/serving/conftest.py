"""One service for all tests here: two replicas on real Ray Serve behind HAProxy, on a registry of tiny models."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve

from configs.schema import Settings
from serve_app.app import APP_NAME, application
from tests.conftest import RayCluster
from tests.integration.serving.world import Registry, Service, free_port, processes, series_total, wait_until

REPLICAS = 2


@pytest.fixture(scope="package")
def registry(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("serving")
    database = folder / "mlflow.db"
    shutil.copyfile(mlflow_template, database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", ((folder / "artifacts").as_uri(),))
    connection.close()
    return Registry(f"sqlite:///{database}", folder)


@pytest.fixture(scope="package")
def settings(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.model_validate(
        {
            "home": str(tmp_path_factory.mktemp("home")),
            "tracking": {"uri": registry.uri},
            "serving": {
                "min_replicas": REPLICAS,
                "max_replicas": REPLICAS,
                "cpus_per_replica": 1,
                "max_text_chars": 2000,
                "max_client_batch_size": 8,
                "max_concurrent_texts": 64,
                "max_body_bytes": 20_000,
                "deadline_ms": 3000,
                "poll_interval_s": 1.0,
                "drain_timeout_s": 2.0,
                "cache_dir": str(tmp_path_factory.mktemp("cache")),
            },
        }
    )


@pytest.fixture(scope="package")
def serve_url(ray_cluster: object) -> Iterator[str]:
    """Ray Serve, running; every application here goes under its own path."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="package")
def service(serve_url: str, settings: Settings, registry: Registry) -> Service:
    """The service, started while nothing was promoted yet; then the first version was."""
    serve.run(application(settings), name=APP_NAME, route_prefix="/")
    running = Service(serve_url, settings, registry)
    for path in ("/health", "/ready", "/info", "/metrics", "/"):
        running.before[path] = running.client.get(path)
    running.before["/predict"] = running.predict()
    running.first_version = registry.register()
    registry.promote(running.first_version)
    wait_until(lambda: running.client.get("/ready").status_code == 200, 30)
    running.wait_for_version(running.first_version, REPLICAS, 10)
    return running


@pytest.fixture(scope="module")
def unharmed(service: Service, ray_cluster: RayCluster) -> Iterator[None]:
    """Around all tests of a module: the same replicas before and after, no bug counted and no traceback logged, nothing
    left in work, and answers as ever."""
    logs = [file for file in (ray_cluster.temp_dir / "session_latest" / "logs").rglob("*") if _is_of_a_replica(file)]
    read = {file: file.stat().st_size for file in logs}
    replicas = {process.pid for process in processes("ServeReplica:trialgate")}
    bugs = series_total(service, "trialgate_requests_total", code="500")
    assert len(replicas) == REPLICAS + 1  # and the board
    yield
    # the scrape itself is one
    wait_until(lambda: series_total(service, "trialgate_requests_in_progress") == 1, 30)
    assert {process.pid for process in processes("ServeReplica:trialgate")} == replicas
    assert series_total(service, "trialgate_requests_total", code="500") == bugs
    for file, size in read.items():
        assert b"Traceback" not in file.read_bytes()[size:], file
    assert service.predict("such a good movie").json()["label"] == "positive"
    assert service.predict("such a bad movie").json()["label"] == "negative"


def _is_of_a_replica(file: Path) -> bool:
    return file.name.startswith(("worker-", "replica_")) and file.is_file()
