"""Keys through Serve, starting without MLflow, draining, and the end of an application."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray import serve

from configs.schema import Settings
from serve_app.app import application, start_draining
from tests.integration.serving.world import Service, wait_until

PATH = "/second"


@pytest.fixture(scope="module")
def second(service: Service, settings: Settings) -> Iterator[httpx.Client]:
    """A second application with API keys, started while MLflow cannot be reached but with the first one's cache."""
    other = settings.model_copy(deep=True)
    other.serving.gateway_replicas = other.serving.min_replicas = other.serving.max_replicas = 1  # the other topology
    database = Path(service.registry.uri.removeprefix("sqlite:///"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVE_API_KEYS", "one,two")
        with _unreachable(database):
            serve.run(application(other), name="second", route_prefix=PATH)
            with httpx.Client(base_url=f"{service.url}{PATH}", timeout=30) as client:
                wait_until(lambda: client.get("/ready").status_code == 200, 20)
                yield client
    serve.delete("second")


@contextlib.contextmanager
def _unreachable(database: Path) -> Iterator[None]:
    """MLflow's database is away for everybody who opens it now."""
    away = database.with_suffix(".away")
    database.rename(away)
    database.mkdir()  # or SQLite would make a new one
    try:
        yield
    finally:
        database.rmdir()
        away.rename(database)


def test_starts_from_the_last_good_copy_while_mlflow_is_down(second: httpx.Client, service: Service):
    info = second.get("/info", headers={"x-api-key": "one"}).json()
    assert info["model_version"] == service.first_version
    assert info["replicas"][0]["registry_error"]


def test_keys_are_asked_for(second: httpx.Client):
    body = {"text": "a good movie"}
    refused = second.post("/predict", json=body)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "unauthorized"
    assert second.post("/predict", json=body, headers={"authorization": "Bearer two"}).status_code == 200
    assert second.get("/metrics").status_code == 401
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
        assert second.get(path).status_code == 200


def test_draining_refuses_new_predictions(second: httpx.Client):
    start_draining("second")
    headers = {"x-api-key": "one"}

    def refused() -> bool:
        return second.post("/predict", json={"text": "good"}, headers=headers).status_code == 503

    wait_until(refused, 5)
    assert second.post("/predict", json={"text": "a"}, headers=headers).json()["error"]["code"] == "draining"
    assert second.get("/ready").status_code == 503
    assert second.get("/health").status_code == 200


def test_an_application_ends_quickly(second: httpx.Client):
    began = time.monotonic()
    serve.delete("second")
    assert time.monotonic() - began < 10
