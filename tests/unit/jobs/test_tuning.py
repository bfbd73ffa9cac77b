"""What Tune and Optuna are given: samplers and schedulers by name, each with its own options."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from configs.search import SearchConfig
from ray_jobs.trial import OBJECTIVE
from ray_jobs.tuning import new_sampler, new_scheduler, new_searcher

SPACE = {
    "training.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    "model.dropout": {"type": "uniform", "low": 0.0, "high": 0.5},
    "training.batch_size": {"type": "int", "low": 8, "high": 64},
}


def search_of(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, **changes})


def f1_of(parameters: dict[str, Any]) -> float:
    return float(0.9 - abs(parameters["model.dropout"] - 0.2) - abs(parameters["training.batch_size"] - 32) / 100)


def propose(search: SearchConfig, trials: int) -> list[dict[str, Any]]:
    """The parameters that a search proposes when one trial ends before the next begins."""
    searcher, proposed = new_searcher(search), []
    for number in range(trials):
        parameters = searcher.suggest(str(number))
        assert parameters is not None
        proposed.append(parameters)
        searcher.on_trial_complete(str(number), {OBJECTIVE: f1_of(parameters)})
    return proposed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, optuna.samplers.TPESampler),
        ({"sampler": "random"}, optuna.samplers.RandomSampler),
        ({"sampler": "cmaes", "population": 6}, optuna.samplers.CmaEsSampler),
        ({"sampler": "gp", "startup_trials": 5}, optuna.samplers.GPSampler),
    ],
)
def test_sampler_by_name(changes: dict[str, Any], expected: type) -> None:
    assert type(new_sampler(search_of(**changes), seed=0)) is expected


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "gp"])
def test_one_trial_at_a_time_is_repeatable_and_follows_the_seed(sampler: str) -> None:
    first = propose(search_of(sampler=sampler), trials=6)
    assert propose(search_of(sampler=sampler), trials=6) == first
    assert propose(search_of(sampler=sampler, seed=1), trials=1) != first[:1]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_results_count_after_the_startup_trials(sampler: str) -> None:
    """Two searches that see opposite results propose the same until the sampler looks at them."""
    searchers = [new_searcher(search_of(sampler=sampler, startup_trials=3)) for _ in range(2)]
    for number in range(30):
        parameters = [searcher.suggest(str(number)) or {} for searcher in searchers]
        if parameters[0] != parameters[1]:
            break
        for searcher, sign in zip(searchers, (1, -1), strict=True):
            searcher.on_trial_complete(str(number), {OBJECTIVE: sign * f1_of(parameters[0])})
    assert 3 <= number < 29


class Epochs:
    """Feeds a scheduler as Tune does: one result after the other, best so far."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.scheduler = scheduler
        self.trials: dict[str, SimpleNamespace] = {}
        # Trials that wait make the median rule pause others, if it may.
        waiting = SimpleNamespace(status="PENDING")
        self.controller = SimpleNamespace(get_live_trials=lambda: [waiting])

    def report(self, trial_id: str, epoch: int, f1: float) -> str:
        new = trial_id not in self.trials
        trial = self.trials.setdefault(trial_id, _Hashable(trial_id=trial_id))
        if new:
            self.scheduler.on_trial_add(self.controller, trial)  # type: ignore[arg-type]
        return self.scheduler.on_trial_result(self.controller, trial, {"epoch": epoch, OBJECTIVE: f1})  # type: ignore[arg-type]


class _Hashable(SimpleNamespace):
    def __hash__(self) -> int:
        return hash(self.trial_id)


def test_asha_has_the_options_of_the_search() -> None:
    scheduler = new_scheduler(search_of(grace_epochs=2, reduction_factor=4), epochs=8)
    assert isinstance(scheduler, ASHAScheduler)
    epochs = Epochs(scheduler)
    assert epochs.report("a", 1, 0.9) == epochs.report("a", 2, 0.9) == TrialScheduler.CONTINUE
    assert epochs.report("b", 1, 0.1) == TrialScheduler.CONTINUE, "still in its grace"
    assert epochs.report("b", 2, 0.1) == TrialScheduler.STOP
    assert epochs.report("a", 8, 0.9) == TrialScheduler.STOP, "the last epoch"


def test_median_stops_the_weak_and_never_pauses() -> None:
    scheduler = new_scheduler(search_of(scheduler="median", grace_epochs=1, minimum_trials=2), epochs=4)
    assert isinstance(scheduler, MedianStoppingRule)
    epochs = Epochs(scheduler)
    for trial_id, epoch in itertools.product("abc", range(1, 5)):
        assert epochs.report(trial_id, epoch, 0.75) == TrialScheduler.CONTINUE
    assert epochs.report("d", 1, 0.5) == TrialScheduler.STOP


def test_no_scheduler_by_name() -> None:
    assert new_scheduler(search_of(scheduler="none"), epochs=3) is None


@pytest.mark.parametrize("objectives", [["f1 max"], ["f1 max", "parameters min"]])
def test_a_failed_trial_is_over_for_the_study_too(objectives: list[str]) -> None:
    searcher = new_searcher(search_of(objectives=objectives))
    for number in range(3):
        searcher.suggest(str(number))
    searcher.on_trial_complete("0", error=True)
    searcher.on_trial_complete("1", {OBJECTIVE: 0.5, "parameters": 10})
    states = [trial.state.name for trial in searcher._ot_study.get_trials(deepcopy=False)]  # type: ignore[union-attr]
    assert states == ["FAIL", "COMPLETE", "RUNNING"]
