"""How many replicas are wanted, by their figures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from serve_app.autoscaling import REFUSED_TEXTS, TEXTS, policy, replicas_for


@pytest.mark.parametrize(
    ("texts", "refused", "running", "wanted"),
    [
        ([], [], 1, 0),
        ([32], [0], 1, 1),
        ([48], [0], 1, 1.5),
        ([100, 28], [0, 0], 2, 4),
        ([3, 1], [0, 0], 2, 0.125),
        ([10], [0.2], 1, 2),  # few in work, because it turns the others away
        ([10, 0], [0, 5], 2, 3),
        ([320], [7], 1, 10),
    ],
)
def test_texts_in_work_and_refusals(texts: list[float], refused: list[float], running: int, wanted: float):
    assert replicas_for(texts, refused, target=32, running=running) == wanted


class Config:
    """Of a deployment, as far as the policy asks."""

    def get_target_ongoing_requests(self) -> float:
        return 10.0


@dataclass
class Context:
    """What Serve tells a policy, as far as ours asks."""

    aggregated_metrics: dict[str, dict[str, float]] | None
    current_num_replicas: int = 2
    target_num_replicas: int = 3
    config: Config = field(default_factory=Config)


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        (None, 3),  # the controller has just been restarted: no reason to stop anything
        ({"ray_running_requests": {"a": 50.0}}, 3),
        ({TEXTS: {"a": 0.0, "b": 0.0}, REFUSED_TEXTS: {"a": 0.0, "b": 0.0}}, 0),
        ({TEXTS: {"a": 30.0, "b": 15.0}, "ray_running_requests": {"a": 1.0}}, 4.5),
        ({TEXTS: {"a": 1.0}, REFUSED_TEXTS: {"a": 1.0}}, 3),
    ],
)
def test_what_serve_is_told(figures: dict[str, dict[str, float]] | None, wanted: float):
    context: Any = Context(figures)
    assert policy(context) == (wanted, {})


def test_the_policy_works_where_nothing_of_ours_is_installed():
    """As in the controller of a cluster that gets the code with the application (runtime_env)."""
    from ray import cloudpickle

    import serve_app.autoscaling as module

    cloudpickle.register_pickle_by_value(module)
    pickled = cloudpickle.dumps(policy)
    cloudpickle.unregister_pickle_by_value(module)
    code = (
        "import pickle, sys, types\n"
        "sys.modules['serve_app'] = None\n"
        f"policy = pickle.loads(bytes.fromhex('{pickled.hex()}'))\n"
        "context = types.SimpleNamespace(aggregated_metrics=None, config=None, target_num_replicas=3)\n"
        "assert policy(context) == (3, {})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
