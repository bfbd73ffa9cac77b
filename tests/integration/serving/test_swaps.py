"""The alias moves twenty times under load: nobody fails, and neither memory nor disk grows with the moves."""

from __future__ import annotations

import pytest

from configs.schema import Settings
from tests.conftest import RayCluster
from tests.integration.serving.test_faults import processes
from tests.integration.serving.world import Hammer, Service, copies, wait_until

MOVES = 20
PROMISED_S = 20.0
_GROWTH_MB = 60.0  # of a replica, over all moves


def memory_mb(cluster: RayCluster) -> float:
    """Of all replicas, their own."""
    replicas = processes(cluster, "ServeReplica:trialgate:classifier")
    assert len(replicas) == 2
    return sum(replica.memory_full_info().uss for replica in replicas) / 1e6


def threads(cluster: RayCluster) -> int:
    """Of all replicas."""
    return sum(replica.num_threads() for replica in processes(cluster, "ServeReplica:trialgate:classifier"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_moves_of_the_alias(service: Service, settings: Settings, ray_cluster: RayCluster):
    versions = [service.first_version, service.registry.register()]
    with Hammer(service) as hammer:
        for version in [*reversed(versions), *reversed(versions)]:  # memory is level after the first few
            service.registry.promote(version)
            service.wait_for_version(version, 2, PROMISED_S)
        before, running = memory_mb(ray_cluster), threads(ray_cluster)
        for move in range(MOVES):
            version = versions[(move + 1) % 2]
            service.registry.promote(version)
            service.wait_for_version(version, 2, PROMISED_S)
        answered = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered + 20, 30)
        after, left = memory_mb(ray_cluster), threads(ray_cluster)
    assert hammer.failures == []
    assert {version for _, version in hammer.answers} == set(versions)
    assert after - before < 2 * _GROWTH_MB
    assert left <= running + 4
    assert copies(settings) == sorted(versions)
