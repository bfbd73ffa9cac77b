"""What a trial that ASHA stops leaves behind: nothing that holds a processor."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import ray

from ray_jobs.search import run_search
from tests.conftest import RAY_CPUS, RayCluster
from tests.integration.search.world import small_settings


def test_a_stopped_trial_gives_its_processors_back(
    ray_cluster: RayCluster, mlflow_template: Path, tmp_path: Path
) -> None:
    """Train's own cleaner asks the dashboard which trial is gone, and here, as beside a second Ray, gets no answer."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    changes = {"search__trials": "4", "search__reduction_factor": "2", "search__max_concurrent": "2"}
    settings = small_settings(home, training__epochs="3", **changes)
    result = run_search(settings)
    assert "stopped_early" in {trial.outcome for trial in result.trials}, "the test needs a trial that was stopped"
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < RAY_CPUS and time.monotonic() < deadline:
        ray.wait([ray.remote(num_cpus=0)(int).remote()], timeout=1)
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert set(states) <= {"REMOVED"}
    assert ray.available_resources()["CPU"] == RAY_CPUS
