"""Processes killed under load: what clients see of it, and how long until the service is whole again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.integration.serving.world import Hammer, Service, processes, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECOVERED_S = 60.0
IN_FLIGHT = 4  # requests at a time: one of each of the hammer's threads


def is_whole(service: Service) -> bool:
    """Whether two replicas are ready; not while nobody listens."""
    try:
        answer = service.client.get("/ready")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["ready_replicas"] == 2


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
    answered = len(hammer.answers)
    wait_until(lambda: len(hammer.answers) > answered + 20, 30)
    # HAProxy repeats what it can; what was in work on the killed process may break, which may be tried again.
    assert len(hammer.failures) <= IN_FLIGHT
    assert [failure for failure in hammer.failures if "Error" not in failure and not failure.startswith("5")] == []


def test_without_its_controller_the_service_goes_on(service: Service, hammer: Hammer):
    (controller,) = processes("ServeController")
    controller.kill()
    wait_until(lambda: [found for found in processes("ServeController") if found != controller] != [],
               RECOVERED_S)  # fmt: skip
    answered = len(hammer.answers)
    wait_until(lambda: len(hammer.answers) > answered + 20, 30)
    assert hammer.failures == []
    wait_until(lambda: is_whole(service), RECOVERED_S)


def test_the_proxy_comes_back_and_loses_only_what_it_held(service: Service, hammer: Hammer):
    (proxy,) = [found for found in processes("haproxy.cfg") if "bin/haproxy" in " ".join(found.cmdline())]
    proxy.kill()
    killed_at = time.monotonic()
    wait_until(lambda: any(at > killed_at + 1 for at, _ in hammer.answers), RECOVERED_S)
    assert is_whole(service)
    # Connections broke or were refused while nobody listened, and a proxy that has just started may say 5xx itself, or
    # that it knows no such path. The service itself told nobody of an error.
    by_the_proxy = ("5", "404 Path")
    assert [
        failure for failure in hammer.failures if "Error" not in failure and not failure.startswith(by_the_proxy)
    ] == []
