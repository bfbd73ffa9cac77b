"""What a trial leaves behind that ASHA stops, or that loses its process: nothing that holds a processor."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.tune.schedulers import FIFOScheduler
from ray.util import placement_group_table
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs import tuning
from ray_jobs.journal import Journal
from ray_jobs.search import run_search
from tests.conftest import RAY_CPUS, RayCluster
from tests.integration.search.world import small_settings


class StopAfterOneEpoch(FIFOScheduler):
    """Stops every trial at its first report, as ASHA does with the worse ones."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.STOP


@pytest.fixture
def home(ray_cluster: RayCluster, mlflow_template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(mlflow_template, folder / "mlflow.db")
    return folder


@contextlib.contextmanager
def taken(cpus: float) -> Iterator[None]:
    """These are free, and nobody else's in the block."""
    group = placement_group([{"CPU": cpus}])
    try:
        assert group.wait(30), f"not {cpus:g} CPUs are free but {ray.available_resources().get('CPU', 0):g}"
        yield
    finally:
        remove_placement_group(group)


def test_stopped_trials_give_their_processors_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is stopped while its worker trains, and the next one has its processors and its Tune process."""
    monkeypatch.setattr(tuning, "new_scheduler", lambda *_: StopAfterOneEpoch())
    settings = small_settings(home, training__epochs="400", search__trials="4", search__max_concurrent="2")
    result = run_search(settings)
    assert result.counts() == {"finished": 0, "stopped_early": 4, "failed": 0}
    with taken(RAY_CPUS):
        pass
    # A trial that is told to stop may have had the next epoch's report under way.
    assert all(trial.epochs < 10 for trial in result.trials)


def kill_the_first_that_is_placed() -> threading.Thread:
    """Kills, once, the process of Tune whose trial has the first place for its worker."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def watch() -> None:
        while not any(group["name"] and group["state"] == "CREATED" for group in placement_group_table().values()):
            threading.Event().wait(0.05)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.pid not in before and "ray::ImplicitFunc" in " ".join(process.cmdline()):
                    process.kill()
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_trial_whose_process_dies_before_its_first_epoch_gives_its_processor_back(home: Path) -> None:
    settings = small_settings(home, search__name="early", search__trials="2", search__max_concurrent="1",
                              search__scheduler="none", search__placement_timeout_s="60")  # fmt: skip
    with taken(RAY_CPUS - 1):
        killed = kill_the_first_that_is_placed()
        result = run_search(settings)
    assert not killed.is_alive(), "nothing was killed"
    with taken(RAY_CPUS):
        pass
    assert result.counts() == {"finished": 2, "stopped_early": 0, "failed": 0}
    events = [event["event"] for event in Journal(f"{settings.search.storage}/early/journal.jsonl").events]
    assert events == ["started", "attempt_failed", *["started", "epoch", "epoch", "ended"] * 2]
