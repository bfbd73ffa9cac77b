"""Processes killed under load: what clients see of it, and how long until the service is whole again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from ray import serve

from configs.schema import Settings
from serve_app.app import application
from tests.integration.serving.world import Hammer, Service, processes, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECOVERED_S = 60.0
IN_FLIGHT = 4  # requests at a time: one of each of the hammer's threads


def is_whole(service: Service, replicas: int = 2) -> bool:
    """Whether all replicas are ready; not while nobody listens."""
    try:
        answer = service.client.get("/ready")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["ready_replicas"] == replicas


def check_only_what_was_in_work_broke(hammer: Hammer) -> None:
    """HAProxy repeats what it can; the rest of what a killed process had in work breaks, or is a 5xx of a proxy's,
    which may be tried again. The service itself told nobody of an error."""
    assert len(hammer.failures) <= IN_FLIGHT, hammer.failures
    assert [failure for failure in hammer.failures if "Error(" not in failure and not failure.startswith("5")] == []
    assert [failure for failure in hammer.failures if '"error"' in failure] == []


@pytest.fixture(scope="module")
def behind(service: Service, settings: Settings) -> Iterator[Service]:
    """A second application: one gateway, and one classifier behind it."""
    other = settings.model_copy(deep=True)
    other.serving.gateway_replicas = other.serving.min_replicas = other.serving.max_replicas = 1
    serve.run(application(other), name="behind", route_prefix="/behind")
    running = Service(f"{service.url}/behind", other, service.registry, service.first_version)
    running.wait_for_version(service.first_version, 1, RECOVERED_S)
    yield running
    serve.delete("behind")


@pytest.fixture
def hammer(service: Service) -> Iterator[Hammer]:
    with Hammer(service) as running:
        wait_until(lambda: len(running.answers) > 20, 30)
        yield running


def test_a_killed_replica_fails_at_most_what_it_had_in_work(service: Service, hammer: Hammer):
    victim, *others = processes("ServeReplica:trialgate:classifier")
    assert len(others) == 1
    victim.kill()
    wait_until(
        lambda: len(processes("ServeReplica:trialgate:classifier")) == 2 and is_whole(service),
        RECOVERED_S,
    )
    hammer.wait_for_more()
    check_only_what_was_in_work_broke(hammer)


def test_a_replica_whose_engines_are_killed_ends_and_is_replaced(service: Service, hammer: Hammer):
    replicas = processes("ServeReplica:trialgate:classifier")
    (engines,) = replicas[0].children()
    assert "serve_app.engine_worker" in " ".join(engines.cmdline())
    engines.kill()
    wait_until(
        lambda: (
            replicas[0] not in (now := processes("ServeReplica:trialgate:classifier"))
            and len(now) == 2
            and is_whole(service)
        ),
        RECOVERED_S,
    )
    hammer.wait_for_more()
    check_only_what_was_in_work_broke(hammer)


def test_without_its_controller_the_service_goes_on(service: Service, hammer: Hammer):
    (controller,) = processes("ServeController")
    controller.kill()
    wait_until(lambda: [found for found in processes("ServeController") if found != controller] != [],
               RECOVERED_S)  # fmt: skip
    hammer.wait_for_more()
    assert hammer.failures == []
    wait_until(lambda: is_whole(service), RECOVERED_S)


def test_the_proxy_comes_back_and_loses_only_what_it_held(service: Service, hammer: Hammer):
    proxies = [found for found in processes("haproxy.cfg") if "bin/haproxy" in " ".join(found.cmdline())]
    assert proxies
    for proxy in proxies:  # after a change of its configuration the old one stays until its connections are closed
        proxy.kill()
    killed_at = time.monotonic()
    wait_until(lambda: any(at > killed_at + 1 for at, _ in hammer.answers), RECOVERED_S)
    wait_until(lambda: is_whole(service), RECOVERED_S)
    # Connections broke or were refused while nobody listened, and a proxy that has just started may say 5xx itself, or
    # that it knows no such path. The service itself told nobody of an error.
    by_the_proxy = ("5", "404 Path")
    assert [
        failure for failure in hammer.failures if "Error" not in failure and not failure.startswith(by_the_proxy)
    ] == []


def test_without_its_board_the_service_goes_on(service: Service, hammer: Hammer):
    name = "ServeReplica:trialgate:board"
    before = processes(name)
    assert len(before) == 1
    before[0].kill()
    wait_until(lambda: processes(name) not in ([], before), RECOVERED_S)
    wait_until(lambda: service.client.get("/metrics").status_code == 200 and len(service.versions()) == 2, RECOVERED_S)
    hammer.wait_for_more()
    assert hammer.failures == []


def test_the_only_gateway_comes_back(behind: Service):
    name = "ServeReplica:behind:gateway"
    with Hammer(behind) as hammer:
        hammer.wait_for_more()
        before = processes(name)
        assert len(before) == 1
        before[0].kill()
        wait_until(lambda: processes(name) not in ([], before) and is_whole(behind, 1), RECOVERED_S)
        hammer.wait_for_more()
    # Meanwhile Ray's own proxy takes what comes, and keeps it until there is a gateway.
    check_only_what_was_in_work_broke(hammer)


def test_the_only_classifier_behind_a_gateway_comes_back(behind: Service):
    name = "ServeReplica:behind:classifier"
    with Hammer(behind) as hammer:
        hammer.wait_for_more()
        before = processes(name)
        assert len(before) == 1
        before[0].kill()
        wait_until(lambda: processes(name) not in ([], before) and is_whole(behind, 1), RECOVERED_S)
        hammer.wait_for_more()
    # The gateway holds what comes until its deadline, and says what is wrong.
    assert [failure for failure in hammer.failures if '"retryable": true' not in failure] == []
