"""Which trial the runs of a search name as its best, in a real MLflow, when a search is interrupted and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.schema import Settings
from ray_jobs.command import AllTrialsFailed
from ray_jobs.journal import Journal
from ray_jobs.parent_run import start_parent_run
from ray_jobs.report import BEST
from ray_jobs.search import abort, finish, prepare_storage
from ray_jobs.tracking import Tracker
from ray_jobs.trial import OBJECTIVE
from ray_jobs.warm_start import EarlierTrials
from serve_app import mlflow_client as names
from tests.integration.search.world import small_settings

TAGS = {names.SEARCH_NAME: "s"}


def begun(client: MlflowClient, settings: Settings, *, resume: bool) -> Tracker:
    """The tracker of the search "s", whose MLflow runs are as a driver finds or makes them."""
    experiment = names.ensure_experiment(client, settings.tracking.experiment)
    storage = f"{settings.search.storage}/s"
    prepare_storage(storage, settings, EarlierTrials())
    parent = start_parent_run(client, experiment, "s", settings, TAGS, resume=resume)
    tracker = Tracker(client, experiment, Journal(f"{storage}/journal.jsonl"), parent)
    tracker.start(TAGS)
    tracker.trial_started("a", {})
    return tracker


def test_a_best_trial_that_fails_after_a_resume_is_named_no_more(tmp_path: Path, tracking_uri: str) -> None:
    settings = small_settings(tmp_path / "home", tracking_uri)
    client = names.connect(settings.tracking)
    tracker = begun(client, settings, resume=False)
    metrics = {"epoch": 1, "best_epoch": 1, "validation_f1": 0.5, OBJECTIVE: 0.5, "model_uri": "file:///model"}
    tracker.epoch_reported("a", metrics)
    abort(tracker, "s", settings.search, "KILLED")
    parent, trial = tracker.parent_run_id, tracker.trials["a"].run_id
    assert trial is not None
    assert client.get_run(parent).data.tags[names.BEST_RUN] == trial
    assert client.get_run(trial).data.tags[BEST] == "true"

    tracker = begun(client, settings, resume=True)
    tracker.trial_ended("a", "failed", "ValueError: bad")
    with pytest.raises(AllTrialsFailed, match="all 1 trials failed; the first error was: ValueError: bad"):
        finish(tracker, "s", settings)
    assert tracker.parent_run_id == parent
    run = client.get_run(parent)
    assert run.info.status == "FAILED"
    assert names.BEST_RUN not in run.data.tags
    assert client.get_run(trial).data.tags[BEST] == "false"
    assert "No winner" in run.data.tags["mlflow.note.content"]


def test_when_all_fail_the_first_to_begin_tells_why(tmp_path: Path, tracking_uri: str) -> None:
    settings = small_settings(tmp_path / "home", tracking_uri)
    tracker = begun(names.connect(settings.tracking), settings, resume=False)
    tracker.trial_started("b", {})
    metrics = {"epoch": 1, "best_epoch": 1, "validation_f1": 0.5, OBJECTIVE: 0.5, "model_uri": "file:///model"}
    tracker.epoch_reported("b", metrics)
    tracker.trial_ended("b", "failed", "ValueError: of the second, which came further")
    tracker.trial_ended("a", "failed", "ValueError: of the first")
    with pytest.raises(AllTrialsFailed, match="all 2 trials failed; the first error was: ValueError: of the first"):
        finish(tracker, "s", settings)
