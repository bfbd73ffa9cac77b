"""Replicas come and go under load, by autoscaling, by a redeploy and at the end, and no request breaks; API keys hold
on the port of each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from ray import serve

from configs.schema import Settings
from serve_app.api import digest_keys
from serve_app.app import application
from tests.conftest import RayCluster
from tests.integration.serving.world import Hammer, Service, processes, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
APP = "elastic"
LIMIT_S = 60.0
KEYS = ["one-key-nobodymaysee", "other-key-nobodymaysee"]
NEW_KEY = "new-key-nobodymaysee"


@pytest.fixture(scope="module")
def elastic(service: Service, settings: Settings) -> Iterator[Service]:
    """A second application, of one replica or two, with API keys."""
    other = settings.model_copy(deep=True)
    other.serving.min_replicas, other.serving.max_replicas = 1, 2
    other.serving.target_ongoing_requests = 2.0
    other.serving.upscale_delay_s = other.serving.downscale_delay_s = 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVE_API_KEYS", ", ".join(KEYS))
        serve.run(application(other), name=APP, route_prefix=f"/{APP}")
        running = Service(
            f"{service.url}/{APP}", other, service.registry, service.first_version, headers={"x-api-key": KEYS[0]}
        )
        running.wait_for_version(service.first_version, 1, LIMIT_S)
        yield running
    serve.delete(APP)


def port_of_the_replica() -> int:
    """Where the only replica itself answers HTTP."""
    (replica,) = processes(f"ServeReplica:{APP}:classifier")
    listening = [found.laddr.port for found in replica.net_connections("tcp") if found.status == "LISTEN"]
    (port,) = [port for port in listening if 30_000 <= port <= 31_000]
    return port


def test_keys_hold_on_the_port_of_a_replica(elastic: Service, ray_cluster: RayCluster):
    with httpx.Client(base_url=f"http://127.0.0.1:{port_of_the_replica()}/{APP}", timeout=30) as client:

        def predict(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.post("/predict", json={"text": "a good movie"}, headers=named).status_code

        assert predict() == 401
        assert predict(x_api_key="third-key-nobodymaysee") == 401
        assert predict(authorization=f"Basic {KEYS[0]}") == 401
        assert predict(x_api_key=KEYS[0]) == 200
        assert predict(authorization=f"Bearer {KEYS[1]}") == 200
        assert client.get("/info").status_code == client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
    logs = ray_cluster.temp_dir / "session_latest" / "logs"
    told = [file.read_text(encoding="utf-8", errors="replace") for file in logs.rglob("*") if file.is_file()]
    assert any("ServeReplica" in text or '"route": "/predict"' in text for text in told)
    assert not [text for text in told if "nobodymaysee" in text]


def test_replicas_go_up_under_load_and_down_after_it(elastic: Service):
    with Hammer(elastic) as load:
        elastic.wait_for_version(elastic.first_version, 2, LIMIT_S)
        load.wait_for_more()
    with Hammer(elastic, threads=1) as trickle:  # one text at a time
        elastic.wait_for_version(elastic.first_version, 1, LIMIT_S)
        trickle.wait_for_more()
    assert load.failures == trickle.failures == []


def test_a_redeploy_with_another_setting_and_one_more_key_replaces_every_replica(elastic: Service):
    other = elastic.settings.model_copy(deep=True)
    other.serving.max_client_batch_size = 9
    other.serving.api_key_digests = digest_keys(NEW_KEY)
    assert httpx.get(f"{elastic.url}/info", headers={"x-api-key": NEW_KEY}).status_code == 401
    before = {replica["replica"] for replica in elastic.info()["replicas"]}
    with Hammer(elastic) as load:
        serve.run(application(other), name=APP, route_prefix=f"/{APP}")

        def replaced() -> bool:
            info = elastic.info()
            known = {replica["replica"] for replica in info["replicas"]}
            return bool(known) and not known & before and info["limits"]["max_client_batch_size"] == 9

        wait_until(replaced, LIMIT_S, elastic.info)
        load.wait_for_more()
    assert load.failures == []  # with an old key
    assert httpx.get(f"{elastic.url}/info", headers={"x-api-key": NEW_KEY}).status_code == 200


def test_at_the_end_what_was_admitted_is_answered(elastic: Service, ray_cluster: RayCluster):
    def drain(application: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve_app.drain", "--application", application]
        environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)

    with Hammer(elastic) as load:
        load.wait_for_more()
        done = drain(APP)
        assert done.returncode == 0, done.stderr
    # Every request had an answer: a refusal, or, once the application was gone, that there is no such path.
    refused = [failure for failure in load.failures if failure.startswith("503") and '"draining"' in failure]
    gone = [failure for failure in load.failures if failure.startswith("404")]
    assert refused
    assert len(refused) + len(gone) == len(load.failures), load.failures
    again = drain(APP)
    assert again.returncode == 2
    assert "there is no application 'elastic'" in again.stderr
    assert "trialgate" in again.stderr
