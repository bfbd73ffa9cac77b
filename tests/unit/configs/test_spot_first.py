"""Which of cluster.yaml's node types Ray's autoscaler starts, decided by its own code with our score."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.loader import load_function_or_class
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for
from ray.autoscaler.node_launch_exception import NodeLaunchException

FILE = Path(__file__).resolve().parents[3] / "cluster.yaml"
NO_CAPACITY = NodeLaunchException("InsufficientInstanceCapacity", "There is no Spot capacity available", None)


def started(tracker: NodeProviderAvailabilityTracker, demand: list[dict[str, float]]) -> dict[str, int]:
    """Counts by node type, with the scorer that the start command names."""
    values = yaml.safe_load(FILE.read_text())
    start = values["head_start_ray_commands"][-1]
    name = next(
        word.partition("=")[2] for word in start.split() if word.startswith("RAY_AUTOSCALER_UTILIZATION_SCORER=")
    )
    scorer = functools.partial(load_function_or_class(name), node_availability_summary=tracker.summary())
    nodes, unmet = get_nodes_for(values["available_node_types"], {"head": 1}, "head", 10, demand, scorer)
    assert not unmet
    return dict(nodes)


@pytest.fixture
def tracker() -> NodeProviderAvailabilityTracker:
    return NodeProviderAvailabilityTracker()


def test_spot_comes_first(tracker: NodeProviderAvailabilityTracker) -> None:
    assert started(tracker, [{"GPU": 1, "CPU": 1}] * 2) == {"gpu_spot": 2}
    assert started(tracker, [{"GPU": 1}] * 8) == {"gpu_spot": 6, "gpu_on_demand": 2}  # all that the file allows


def test_on_demand_while_aws_has_no_spot_capacity(tracker: NodeProviderAvailabilityTracker) -> None:
    tracker.update_node_availability("gpu_spot", int(time.time()), NO_CAPACITY)
    assert started(tracker, [{"GPU": 1}] * 2) == {"gpu_on_demand": 2}
    tracker.update_node_availability("gpu_spot", int(time.time()), None)
    assert started(tracker, [{"GPU": 1}]) == {"gpu_spot": 1}


def test_a_refusal_is_forgotten_after_half_an_hour(tracker: NodeProviderAvailabilityTracker) -> None:
    tracker.update_node_availability("gpu_spot", int(time.time()) - 1801, NO_CAPACITY)
    assert started(tracker, [{"GPU": 1}]) == {"gpu_spot": 1}


def test_work_without_gpu_starts_no_gpu(tracker: NodeProviderAvailabilityTracker) -> None:
    assert started(tracker, [{"CPU": 1}]) == {"cpu_worker": 1}
