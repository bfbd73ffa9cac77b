"""What a trial that ASHA stops leaves behind: nothing that holds a processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.search import run_search
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


def test_a_stopped_trial_gives_its_processors_back(
    ray_cluster: RayCluster, mlflow_template: Path, tmp_path: Path
) -> None:
    """Train's own cleaner asks the dashboard which trial is gone, and here, as beside a second Ray, gets no answer."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    changes = {
        "data__generator": "{texts: 1200, test_texts: 80}",
        "model__architecture": "{layers: 1, width: 32, heads: 2, vocabulary_size: 1000}",
        "search__space__training__learning_rate": "{type: choice, values: [1.0e-8, 1.0e-2]}",
        "search__trials": "4",
        "search__max_concurrent": "2",
        "search__reduction_factor": "2",
    }
    settings = small_settings(home, **changes)
    free = ray.available_resources()["CPU"]
    result = run_search(settings)
    assert "stopped_early" in {trial.outcome for trial in result.trials}, "the test needs a trial that was stopped"
    everything = placement_group([{"CPU": free}])
    try:
        assert everything.wait(30), f"of {free:g} CPUs {ray.available_resources().get('CPU', 0):g} are free"
    finally:
        remove_placement_group(everything)
