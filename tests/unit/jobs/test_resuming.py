"""What a search that goes on is told of its past."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import optuna
import pytest

from configs.loading import load_settings
from configs.schema import Settings
from ray_jobs import disk
from ray_jobs.command import StorageUnavailable
from ray_jobs.journal import Journal
from ray_jobs.resuming import EarlierTrial, Past, settle
from ray_jobs.tracking import Tracker, TrialRecord
from ray_jobs.trial import OBJECTIVE
from ray_jobs.tuning import distribution, new_scheduler

SPACE = {"training.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}


@pytest.fixture
def settings() -> Settings:
    sets = ["training.epochs=4", "search.trials=9", "search.reduction_factor=2", f"search.space={SPACE}"]
    return load_settings(None, sets)


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    """One that sends nothing: it was not started."""
    return Tracker(MagicMock(), "1", Journal(str(tmp_path / "journal.jsonl")), "parent")


def run(tracker: Tracker, trial: str, scores: list[float], outcome: Any = None, rate: float = 1e-3) -> None:
    tracker.trial_started(trial, {"training.learning_rate": rate})
    for epoch, score in enumerate(scores, start=1):
        best = max(scores[:epoch])
        metrics = {"epoch": epoch, "best_epoch": scores.index(best) + 1, "validation_f1": score, OBJECTIVE: best}
        tracker.epoch_reported(trial, {**metrics, "model_uri": "file:///nowhere"})
    if outcome:
        tracker.trial_ended(trial, outcome)


def test_trials_that_were_over_are_settled_and_the_others_wait(tracker: Tracker, settings: Settings) -> None:
    run(tracker, "done", [0.5, 0.6, 0.7, 0.8], "finished")
    run(tracker, "bad", [], "failed")
    run(tracker, "all-epochs", [0.5, 0.6, 0.7, 0.81])
    run(tracker, "asked-to-end", [0.9, 0.91], "killed")
    run(tracker, "in-the-middle", [0.8, 0.9])
    run(tracker, "just-begun", [])
    settle(tracker, settings, None)
    past = Past.of(tracker)
    assert [trial.trial_id for trial in past.settled] == ["done", "bad", "all-epochs"]
    assert [trial.trial_id for trial in past.interrupted] == ["asked-to-end", "in-the-middle", "just-begun"]
    assert tracker.trials["all-epochs"].outcome == "finished"


def test_a_trial_that_ran_out_of_patience_is_over(tracker: Tracker, settings: Settings) -> None:
    settings.training.early_stop_patience = 1
    run(tracker, "patient", [0.7, 0.6])
    settle(tracker, settings, None)
    assert tracker.trials["patient"].outcome == "finished"


def test_asha_decides_as_if_nothing_had_happened(tracker: Tracker, settings: Settings) -> None:
    for place, score in enumerate([0.9, 0.8, 0.87, 0.3, 0.88]):
        run(tracker, f"trial-{place}", [score])
    settle(tracker, settings, new_scheduler(settings.search, settings.training.epochs))
    # Rung 1 at reduction factor 2: below the median of those before it.
    stopped = [trial.trial_id for trial in tracker.trials.values() if trial.outcome == "stopped_early"]
    assert stopped == ["trial-1", "trial-3"]

    told, uninterrupted = (
        new_scheduler(settings.search, settings.training.epochs),
        new_scheduler(settings.search, settings.training.epochs),
    )
    assert told is not None
    assert uninterrupted is not None
    Past.of(tracker).tell(told)
    for trial_id, metrics in Past.of(tracker).epochs:
        uninterrupted.on_trial_add(None, EarlierTrial(trial_id))
        uninterrupted.on_trial_result(None, EarlierTrial(trial_id), metrics)
    for scheduler in (told, uninterrupted):
        scheduler.on_trial_add(None, EarlierTrial("next"))
    for score in (0.84, 0.86):
        result = {"epoch": 1, OBJECTIVE: score}
        first = told.on_trial_result(None, EarlierTrial("next"), result)
        assert first == uninterrupted.on_trial_result(None, EarlierTrial("next"), result)


def test_the_study_has_no_trial_that_runs(tracker: Tracker, settings: Settings) -> None:
    run(tracker, "done", [0.5, 0.6, 0.7, 0.8], "finished", 1e-3)
    run(tracker, "bad", [], "failed", 2e-3)
    run(tracker, "open", [0.4], None, 3e-3)
    space = {key: distribution(dimension) for key, dimension in settings.search.space.items()}
    study = optuna.create_study(direction="maximize")
    Past.of(tracker).fill(study, [OBJECTIVE], space)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
    assert study.best_value == 0.8
    assert study.ask(space).params == {"training.learning_rate": 3e-3}
    assert study.ask(space).params != {"training.learning_rate": 3e-3}


def test_a_journal_that_cannot_be_written_ends_the_search_and_loses_nothing_before(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    tracker = Tracker(MagicMock(), "1", Journal(str(folder / "journal.jsonl")), "parent")
    run(tracker, "first", [0.5], "finished")
    shutil.rmtree(folder)  # the storage is gone
    run(tracker, "second", [0.5, 0.6], "finished")
    assert isinstance(tracker.storage_problem, StorageUnavailable)
    assert "cannot be written" in (tracker.ending or "")
    assert tracker.trials["second"].f1 == 0.6
    assert {event["trial"] for event in tracker.journal.events} == {"first"}


def test_the_median_rule_does_not_count_an_interrupted_trial_twice(tracker: Tracker) -> None:
    settings = load_settings(None, ["training.epochs=4", "search.scheduler=median"])
    run(tracker, "done", [0.5, 0.6, 0.7, 0.8], "finished")
    run(tracker, "open", [0.4])
    rule = new_scheduler(settings.search, settings.training.epochs)
    assert rule is not None
    Past.of(tracker).tell(rule)
    assert [trial.trial_id for trial in rule._results] == ["done"]


def test_tidying_touches_the_trial_that_ended_and_new_losers_alone(
    tracker: Tracker, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.search.keep_best = 1
    run(tracker, "best", [0.9], "finished")
    run(tracker, "loser", [0.5], "finished")
    touched: list[str] = []
    monkeypatch.setattr(disk, "remove_trial", lambda _, trial_id: touched.append(trial_id))
    monkeypatch.setattr(disk, "keep_only_model", lambda _, trial: touched.append(trial.trial_id))
    disk.tidy(tracker, str(tmp_path), settings.search, "best")
    assert touched == ["best", "loser"]
    assert tracker.trials["loser"].model_uri is None
    touched.clear()
    run(tracker, "third", [0.6], "finished")
    disk.tidy(tracker, str(tmp_path), settings.search, "third")
    assert touched == ["third"]
    disk.tidy(tracker, str(tmp_path), settings.search)
    assert touched == ["third", "best", "loser", "third"]


def test_the_end_of_a_trial_compares_it_with_others_by_their_ids(
    tracker: Tracker, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(one: TrialRecord, other: object) -> bool:
        raise AssertionError("all trials with all losers, field by field: among 1,000 trials 30 ms")

    for number in range(20):
        run(tracker, f"trial{number}", [number / 20], "finished")
    monkeypatch.setattr(TrialRecord, "__eq__", compare)
    disk.tidy(tracker, str(tmp_path), settings.search, "trial19")
    assert [trial.trial_id for trial in tracker.trials.values() if trial.model_uri] == ["trial17", "trial18", "trial19"]


def test_the_time_between_two_attempts_is_not_the_trials(tracker: Tracker, settings: Settings) -> None:
    run(tracker, "open", [0.4])
    trial = tracker.trials["open"]
    trial.started -= 100.0  # it ran for 100 s, and was then killed
    trial.seconds = 100.0
    settle(tracker, settings, None)
    tracker.trial_started("open", trial.parameters)
    tracker.trial_ended("open", "finished")
    assert trial.seconds == pytest.approx(100.0, abs=5.0)


def test_a_trial_that_is_tried_again_has_its_attempts_in_the_journal(tracker: Tracker, settings: Settings) -> None:
    run(tracker, "open", [0.4])
    tracker.attempt_failed("open", "ActorDiedError: gone")
    tracker.trial_started("open", tracker.trials["open"].parameters)
    tracker.trial_started("open", tracker.trials["open"].parameters)  # told twice, one attempt
    tracker.trial_ended("open", "finished")
    events = [event["event"] for event in tracker.journal.events]
    assert events == ["started", "epoch", "attempt_failed", "started", "ended"]
    client = MagicMock(search_runs=lambda *_: [])
    again = Tracker(client, "1", tracker.journal, "parent")
    again.start({})
    again.close(30.0)
    assert (again.trials["open"].outcome, again.trials["open"].error) == ("finished", None)
    sent = {tag.key: tag.value for call in client.log_batch.call_args_list for tag in call.kwargs.get("tags", ())}
    assert sent["trialgate.retried_after"] == "ActorDiedError: gone"
    assert "trialgate.error" not in sent


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    disk.write_whole(str(tmp_path / "file"), "old")
    disk.write_whole(f"file://{tmp_path}/file", "new")
    assert (tmp_path / "file").read_text() == "new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        disk.write_whole(str(tmp_path / "folder"), "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"], "nothing half written stays"
    disk.write_whole("memory://search/file", "text")
    assert fsspec.filesystem("memory").cat("/search/file") == b"text"
