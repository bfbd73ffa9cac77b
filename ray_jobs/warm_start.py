"""Earlier trials that a search's sampler learns from: found in MLflow, comparable, and inside the search's space."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec

from configs.loading import ConfigError
from configs.search import Choice, Dimension, Int, SearchConfig, WarmStart
from ray_jobs import disk
from ray_jobs.command import StorageUnavailable
from ray_jobs.objectives import GOALS
from ray_jobs.parent_run import VALIDATION_DIGEST
from ray_jobs.trial import OBJECTIVE
from ray_jobs.tuning import distribution
from serve_app import mlflow_client as names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

_FILE = "warm_start.json"


@dataclass
class EarlierTrials:
    """``trials``: completed, oldest first. ``left_out``: how many others there were, by the reason."""

    trials: list[FrozenTrial] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """What people are told."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"warm start: {len(self.trials)} earlier trials" + (f"; left out: {reasons}" if reasons else "")


def earlier_trials(
    client: MlflowClient, search: SearchConfig, *, name: str, validation_digest: str, f1_key: str
) -> EarlierTrials:
    """The trials that ``search.warm_start`` means, at most its ``top_k`` with the best F1.

    Only results on the same validation texts (``validation_digest``), by the same definition of F1 (``f1_key``) and of
    trials that ended by themselves or were stopped early can be compared with new ones. ``name``: the search that asks,
    whose own trials are no earlier ones. Raises ConfigError when there is no such run or experiment.
    """
    found = EarlierTrials()
    if search.warm_start is None:
        return found
    usable = []
    for run in _runs(client, search.warm_start):
        tags = run.data.tags
        if tags.get(names.SEARCH_NAME) == name:
            continue
        if tags.get(names.OUTCOME) not in ("finished", "stopped_early"):
            found.left_out["not finished"] += 1
        elif tags.get(VALIDATION_DIGEST) != validation_digest:
            found.left_out["on other validation texts"] += 1
        elif tags.get(names.F1_DEFINITION) != f1_key:
            found.left_out["by another definition of F1"] += 1
        elif set(run.data.params) != set(search.space):
            found.left_out["with other parameters"] += 1
        elif any(GOALS[objective][0] not in run.data.metrics for objective in search.objectives):
            found.left_out["without a value of every objective"] += 1
        elif (trial := _trial_of(run, search)) is None:
            found.left_out["outside the space"] += 1
        else:
            usable.append((run, trial))
    usable.sort(key=lambda pair: pair[0].data.metrics[OBJECTIVE], reverse=True)
    top = usable[: search.warm_start.top_k]
    if len(usable) > len(top):
        found.left_out[f"beyond the best {len(top)}"] += len(usable) - len(top)
    found.trials = [trial for _, trial in sorted(top, key=lambda pair: pair[0].info.start_time)]
    return found


def keep(storage: str, earlier: EarlierTrials) -> None:
    """Writes them into the folder of the search that begins with them, for when it goes on."""
    trials = [{"parameters": trial.params, "values": trial.values} for trial in earlier.trials]
    disk.write_whole(f"{storage}/{_FILE}", json.dumps(trials, indent=2))


def kept(storage: str, search: SearchConfig) -> EarlierTrials:
    """Those that the search in ``storage`` began with. Meanwhile MLflow may have more, fewer, or none of them.

    Raises StorageUnavailable, and ConfigError when the file is not there.
    """
    if search.warm_start is None:
        return EarlierTrials()
    try:
        with fsspec.open(f"{storage}/{_FILE}", "r", encoding="utf-8") as file:
            trials = json.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{storage}/{_FILE} is missing, which has the earlier trials that the search began with: put "
                          "it back, or begin a search of another name") from None  # fmt: skip
    except Exception as error:  # every store has exceptions of its own
        raise StorageUnavailable(f"the earlier trials that the search began with cannot be read: {error}") from error
    return EarlierTrials([_completed(trial["parameters"], trial["values"], search) for trial in trials])


def _runs(client: MlflowClient, source: WarmStart) -> list[Run]:
    condition = f"tags.`{names.KIND}` = '{names.KIND_TRIAL}'"
    if source.parent_run is not None:
        parent = names.find_run(client, source.parent_run)
        if parent is None:
            raise ConfigError(f"search.warm_start.parent_run: MLflow has no run '{source.parent_run}'")
        if parent.data.tags.get(names.KIND) != names.KIND_SEARCH:
            above = parent.data.tags.get(names.PARENT_RUN)
            hint = f"; the search that it belongs to is {above}" if above else ""
            raise ConfigError(f"search.warm_start.parent_run: run '{source.parent_run}' is no search's run{hint}")
        experiment_id = parent.info.experiment_id
        condition += f" and tags.`{names.PARENT_RUN}` = '{source.parent_run}'"
    else:
        experiment = client.get_experiment_by_name(source.experiment or "")
        if experiment is None:
            raise ConfigError(f"search.warm_start.experiment: MLflow has no experiment '{source.experiment}'")
        experiment_id = experiment.experiment_id
    return list(client.search_runs([experiment_id], condition, max_results=50_000))


def _trial_of(run: Run, search: SearchConfig) -> FrozenTrial | None:
    """The run as Optuna's completed trial; None if a parameter lies outside its dimension."""
    values = [run.data.metrics[GOALS[objective][0]] for objective in search.objectives]
    try:
        parameters = {key: _parsed(text, search.space[key]) for key, text in run.data.params.items()}
        return _completed(parameters, values, search)
    except ValueError:
        return None


def _completed(parameters: Mapping[str, Any], values: Sequence[float], search: SearchConfig) -> FrozenTrial:
    """Raises ValueError if a parameter lies outside its dimension."""
    import optuna

    distributions = {key: distribution(dimension) for key, dimension in search.space.items()}
    return optuna.trial.create_trial(params=dict(parameters), distributions=distributions, values=values)


def _parsed(text: str, dimension: Dimension) -> Any:
    """A parameter as MLflow keeps it, as a value of its dimension. Raises ValueError if it is none."""
    if isinstance(dimension, Choice):
        for value in dimension.values:
            if str(value) == text:
                return value
        raise ValueError(text)
    return int(text) if isinstance(dimension, Int) else float(text)
