"""A real MLflow server is killed: the service goes on, what starts meanwhile serves the last good copy, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from configs.schema import Settings
from serve_app.app import application
from tests.broken import cut
from tests.integration.serving.world import Hammer, Registry, Service, processes, wait_until
from tests.servers import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NAME = "outage"
SOON_S = 60.0


@pytest.fixture
def server(mlflow_template: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    database = tmp_path / "mlflow.db"
    database.write_bytes(mlflow_template.read_bytes())
    server = MlflowServer(f"sqlite:///{database}", tmp_path / "server", workers=1)
    yield server
    server.kill()


@pytest.fixture
def own(server: MlflowServer, settings: Settings, serve_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service of one replica on that server, with a cache of its own."""
    mine = settings.model_copy(deep=True)
    mine.tracking.uri, mine.serving.cache_dir = server.uri, str(tmp_path / "cache")
    mine.serving.min_replicas = mine.serving.max_replicas = 1
    service = Service(f"{serve_url}/{NAME}", mine, Registry(server.uri, tmp_path))
    service.first_version = service.registry.register()
    service.registry.promote(service.first_version)
    _start(service)
    yield service
    serve.delete(NAME)


def _start(service: Service) -> None:
    serve.run(application(service.settings), name=NAME, route_prefix=f"/{NAME}")


def _replica(service: Service) -> dict[str, Any]:
    """What /info says of the one replica; empty while there is none."""
    try:
        answer = service.client.get("/info")
    except httpx.HTTPError:
        return {}
    replicas = answer.json()["replicas"] if answer.status_code == 200 else []
    return dict(replicas[0]) if len(replicas) == 1 else {}


def _serves_last_good(service: Service) -> bool:
    found = _replica(service)
    return bool(found.get("ready") and found["started_from_last_good"] and found["registry_error"])


def _replace_replica() -> None:
    """Kills it, and returns when Serve has started another."""
    (victim,) = processes(f"ServeReplica:{NAME}:classifier")
    victim.kill()
    wait_until(lambda: [new for new in processes(f"ServeReplica:{NAME}:classifier") if new != victim] != [],
               SOON_S)  # fmt: skip


def test_an_outage_of_mlflow(own: Service, server: MlflowServer):
    first = own.first_version
    wait_until(lambda: _replica(own).get("ready", False), SOON_S)
    assert not _replica(own)["started_from_last_good"]
    with Hammer(own, threads=2) as hammer:
        server.kill()
        wait_until(lambda: bool(_replica(own).get("registry_error")), SOON_S)
        answered = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered + 20, SOON_S)
    assert hammer.failures == []

    _replace_replica()
    wait_until(lambda: _serves_last_good(own), SOON_S, lambda: _replica(own))
    assert own.predict().json()["model_version"] == first

    serve.delete(NAME)  # and the whole service anew
    _start(own)
    wait_until(lambda: _serves_last_good(own), SOON_S, lambda: _replica(own))
    assert own.predict().json()["model_version"] == first

    assert own.settings.serving.cache_dir is not None
    (weights,) = Path(own.settings.serving.cache_dir).rglob("model.safetensors")
    cut(weights.parent)
    assert own.predict().json()["label"] == "positive"
    _replace_replica()
    wait_until(lambda: bool(_replica(own).get("load_errors")), SOON_S, lambda: _replica(own))
    assert "the copy here is broken" in _replica(own)["load_errors"][0]["error"]
    assert own.predict().json()["error"]["code"] == "not_ready"

    server.start()
    wait_until(lambda: _replica(own).get("version") == first, SOON_S, lambda: _replica(own))
    second = own.registry.register()
    own.registry.promote(second)
    own.wait_for_version(second, 1, SOON_S)
    found = _replica(own)
    assert (found["registry_error"], found["load_errors"], found["started_from_last_good"]) == (None, [], False)
