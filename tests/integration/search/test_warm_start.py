"""Earlier trials out of a real MLflow, into a real Optuna study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from configs.loading import ConfigError
from configs.schema import TrackingConfig
from configs.search import SearchConfig
from ray_jobs.parent_run import VALIDATION_DIGEST
from ray_jobs.plan import known_beforehand
from ray_jobs.trial import OBJECTIVE
from ray_jobs.tuning import new_searcher
from ray_jobs.warm_start import EarlierTrials, earlier_trials, keep
from serve_app import mlflow_client as names

SPACE = {
    "training.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    "training.batch_size": {"type": "choice", "values": [16, 32]},
}
GOOD = {"training.learning_rate": 0.00123456789012345, "training.batch_size": 16}


class World:
    """An experiment with one earlier search."""

    def __init__(self, uri: str) -> None:
        self.client: MlflowClient = names.connect(TrackingConfig(uri=uri))
        self.experiment = names.ensure_experiment(self.client, "earlier")
        tags = {names.KIND: names.KIND_SEARCH, names.SEARCH_NAME: "first"}
        self.parent = self.client.create_run(self.experiment, tags=tags).info.run_id
        self._clock = 0

    def trial(
        self, f1: float, parameters: dict[str, Any] = GOOD, metrics: dict[str, float] | None = None, **tags: str
    ) -> str:
        """A trial's run, as a search leaves it; ``tags``: what is different about it."""
        self._clock += 1
        run = self.client.create_run(
            self.experiment,
            start_time=self._clock,
            tags={
                names.KIND: names.KIND_TRIAL,
                names.PARENT_RUN: self.parent,
                names.SEARCH_NAME: tags.get("search", "first"),
                names.OUTCOME: tags.get("outcome", "finished"),
                VALIDATION_DIGEST: tags.get("digest", "d1"),
                names.F1_DEFINITION: tags.get("definition", "binary:positive"),
            },
        )
        for key, value in parameters.items():
            self.client.log_param(run.info.run_id, key, value)
        for key, value in ({OBJECTIVE: f1} | (metrics or {})).items():
            self.client.log_metric(run.info.run_id, key, value)
        return run.info.run_id

    def earlier(self, **changes: Any) -> EarlierTrials:
        values = {"space": SPACE, "warm_start": {"parent_run": self.parent}, **changes}
        search = SearchConfig.model_validate(values)
        return earlier_trials(self.client, search, name="second", validation_digest="d1", f1_key="binary:positive")


@pytest.fixture
def world(tracking_uri: str) -> World:
    return World(tracking_uri)


def test_only_what_can_be_compared_and_lies_in_the_space(world: World) -> None:
    world.trial(0.7, outcome="stopped_early")
    world.trial(0.9)
    world.trial(0.99, outcome="failed")
    world.trial(0.99, digest="d2")
    world.trial(0.99, definition="macro")
    world.trial(0.99, search="second")  # the search's own, when it goes on
    world.trial(0.99, {**GOOD, "model.dropout": 0.1})
    world.trial(0.99, {**GOOD, "training.learning_rate": 0.5})
    world.trial(0.99, {**GOOD, "training.batch_size": 64})
    found = world.earlier()
    assert [trial.value for trial in found.trials] == [0.7, 0.9]
    assert found.trials[0].params == GOOD, "to the last digit, and of the same type"
    assert found.line() == (
        "warm start: 2 earlier trials; left out: 1 by another definition of F1, 1 not finished, "
        "1 on other validation texts, 2 outside the space, 1 with other parameters"
    )


def test_the_best_of_an_experiment(world: World) -> None:
    for f1 in (0.5, 0.9, 0.6, 0.8):
        world.trial(f1)
    found = world.earlier(warm_start={"experiment": "earlier", "top_k": 2})
    assert [trial.value for trial in found.trials] == [0.9, 0.8], "oldest first"
    assert found.left_out == {"beyond the best 2": 2}


def test_every_objective_is_needed(world: World) -> None:
    world.trial(0.9)
    world.trial(0.8, metrics={"parameters": 1000.0})
    found = world.earlier(objectives=["f1 max", "parameters min"])
    assert [trial.values for trial in found.trials] == [[0.8, 1000.0]]
    assert found.left_out == {"without a value of every objective": 1}


def test_what_is_not_there_is_refused_by_name(world: World) -> None:
    with pytest.raises(ConfigError, match="search.warm_start.parent_run: MLflow has no run 'abc'"):
        world.earlier(warm_start={"parent_run": "abc"})
    with pytest.raises(ConfigError, match=f"is no search's run; the search that it belongs to is {world.parent}"):
        world.earlier(warm_start={"parent_run": world.trial(0.9)})
    with pytest.raises(ConfigError, match="search.warm_start.experiment: MLflow has no experiment 'nowhere'"):
        world.earlier(warm_start={"experiment": "nowhere"})


def test_a_search_that_goes_on_knows_what_it_began_with(world: World, tmp_path: Path) -> None:
    deleted = world.trial(0.9)
    world.trial(0.7)
    search = SearchConfig.model_validate({"space": SPACE, "warm_start": {"parent_run": world.parent}})
    began: Any = SimpleNamespace(
        name="second",
        storage=str(tmp_path),
        dataset=SimpleNamespace(validation=SimpleNamespace(digest="d1"), f1=SimpleNamespace(key="binary:positive")),
        goes_on=False,
    )
    before = known_beforehand(world.client, search, began)
    keep(began.storage, before)
    world.client.delete_run(deleted)
    world.trial(0.8)
    assert [trial.value for trial in known_beforehand(world.client, search, began).trials] == [0.7, 0.8]
    began.goes_on = True
    again = known_beforehand(world.client, search, began)
    assert [trial.value for trial in again.trials] == [0.9, 0.7]
    assert [trial.params for trial in again.trials] == [GOOD, GOOD], "to the last digit, and of the same type"
    assert [trial.distributions for trial in again.trials] == [trial.distributions for trial in before.trials]
    (tmp_path / "warm_start.json").unlink()
    with pytest.raises(ConfigError, match=r"warm_start\.json is missing"):
        known_beforehand(world.client, search, began)


@pytest.mark.parametrize("objectives", [["f1 max"], ["f1 max", "parameters min"]])
def test_the_sampler_knows_them_once_and_none_runs_again(world: World, tmp_path: Path, objectives: list[str]) -> None:
    for f1 in (0.5, 0.9, 0.6, 0.8):
        world.trial(f1, metrics={"parameters": 1000.0})
    search = SearchConfig.model_validate({"space": SPACE, "objectives": objectives})
    searcher = new_searcher(search, world.earlier(objectives=objectives).trials)
    proposed = searcher.suggest("new")
    assert proposed is not None
    assert proposed != GOOD
    searcher.on_trial_complete("new", {OBJECTIVE: 0.7, "parameters": 500})
    searcher.save(str(tmp_path / "state"))
    resumed = new_searcher(search)
    resumed.restore(str(tmp_path / "state"))
    resumed.suggest("another")
    states = [trial.state.name for trial in resumed._ot_study.get_trials(deepcopy=False)]  # type: ignore[union-attr]
    assert states == ["COMPLETE"] * 5 + ["RUNNING"]
