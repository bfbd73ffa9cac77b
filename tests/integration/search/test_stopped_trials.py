"""What a trial that ASHA stops leaves behind: nothing that holds a processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.schedulers import FIFOScheduler
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs import tuning
from ray_jobs.search import run_search
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


class StopAfterOneEpoch(FIFOScheduler):
    """Stops every trial at its first report, as ASHA does with the worse ones."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.STOP


def test_stopped_trials_give_their_processors_back(
    ray_cluster: RayCluster, mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is stopped while its worker trains, and the next one has its processors and its Tune process."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    monkeypatch.setattr(tuning, "new_scheduler", lambda *_: StopAfterOneEpoch())
    settings = small_settings(home, training__epochs="400", search__trials="4", search__max_concurrent="2")
    free = ray.available_resources()["CPU"]
    result = run_search(settings)
    assert result.counts() == {"finished": 0, "stopped_early": 4, "failed": 0}
    # A trial that is told to stop may have had the next epoch's report under way.
    assert all(trial.epochs < 10 for trial in result.trials)
    everything = placement_group([{"CPU": free}])
    try:
        assert everything.wait(30), f"of {free:g} CPUs {ray.available_resources().get('CPU', 0):g} are free"
    finally:
        remove_placement_group(everything)
