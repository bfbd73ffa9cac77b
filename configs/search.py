"""The settings under ``search``: the space, who samples and stops, what a trial holds, and the budgets."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.section import Seconds, Section


class LogUniform(Section):
    """A float drawn uniformly in the logarithm."""

    type: Literal["loguniform"]
    low: float = Field(gt=0.0, description="Lowest value.")
    high: float = Field(gt=0.0, description="Highest value.")


class Uniform(Section):
    """A float drawn uniformly."""

    type: Literal["uniform"]
    low: float = Field(description="Lowest value.")
    high: float = Field(description="Highest value.")


class Int(Section):
    """A whole number drawn uniformly, both ends included."""

    type: Literal["int"]
    low: int = Field(description="Lowest value.")
    high: int = Field(description="Highest value.")


class Choice(Section):
    """One of the listed values."""

    type: Literal["choice"]
    values: list[bool | int | float | str] = Field(min_length=1, description="The values to choose from.")


Dimension = Annotated[LogUniform | Uniform | Int | Choice, Field(discriminator="type")]


class WarmStart(Section):
    """Earlier trials that the sampler learns from before the first trial: those of one search, or of an experiment."""

    experiment: str | None = Field(None, min_length=1, description="Name of the MLflow experiment they are in.")
    parent_run: str | None = Field(None, min_length=1, description="Parent run (id) of the search they belong to.")
    top_k: int = Field(50, ge=1, le=10_000, description="Use at most this many, those with the best F1, count.")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> WarmStart:
        if (self.experiment is None) == (self.parent_run is None):
            found = "neither" if self.experiment is None else "both"
            raise ValueError(
                f"set exactly one of search.warm_start.experiment and search.warm_start.parent_run, found {found}"
            )
        return self


Objective = Literal["f1 max", "parameters min", "latency min"]

# The options of every sampler and scheduler, with their defaults; None leaves the choice to Optuna.
_SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"startup_trials": 4, "candidates": 24},
    "random": {},
    "cmaes": {"startup_trials": 1, "population": None},
    "gp": {"startup_trials": 4},
}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "asha": {"grace_epochs": 1, "reduction_factor": 3},
    "median": {"grace_epochs": 1, "minimum_trials": 3},
    "none": {},
}


class SearchConfig(Section):
    """The hyperparameter search."""

    trials: int = Field(10, ge=1, le=100_000, description="Trials to run, count.")
    space: dict[str, Dimension] = Field(
        default_factory=dict, description="Search space: dotted setting (training.* or model.*) to its dimension."
    )
    objectives: list[Objective] = Field(
        ["f1 max"],
        min_length=1,
        description="What to search for, f1 max first: validation F1, trainable parameters (count), latency of 8 texts "
        "(ms). More than one gives a Pareto front.",
    )
    max_f1_drop: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="With several objectives, the gate gets the trial that is best by the second of them among those "
        "whose F1 is at most this far below the highest; 0: the highest F1.",
    )
    warm_start: WarmStart | None = Field(None, description="Earlier trials to begin with; default: none.")
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at the same time, count; default: what the cluster's resources hold."
    )
    workers_per_trial: int | None = Field(
        None, ge=1, le=1024, description="Data-parallel workers of a trial; default: one per whole GPU, at least 1."
    )
    cpus_per_trial: float = Field(1.0, gt=0.0, le=4096, description="CPU cores of a trial, over all its workers.")
    gpus_per_trial: float = Field(0.0, ge=0.0, le=1024, description="GPUs of a trial; a fraction shares one GPU.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the sampler.")
    sampler: Literal["tpe", "random", "cmaes", "gp"] = Field(
        "tpe",
        description="Who proposes parameters: tpe, random, cmaes (numbers only), or gp (a Gaussian process, for which "
        "the driver loads torch).",
    )
    startup_trials: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Trials drawn at random before the sampler models the results, count; default: 4, cmaes 1.",
    )
    candidates: int | None = Field(
        None, ge=1, le=100_000, description="Points that tpe weighs for every trial, count; default: 24."
    )
    population: int | None = Field(
        None, ge=2, le=10_000, description="Trials in a generation of cmaes, count; default: 4 + 3 ln(dimensions)."
    )
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha",
        description="Who stops weak trials early: asha (successive halving), median (below the median of the others' "
        "running means), or none.",
    )
    grace_epochs: int | None = Field(
        None, ge=1, le=1000, description="Epochs that asha and median give every trial, count; default: 1."
    )
    reduction_factor: int | None = Field(
        None, ge=2, le=16, description="asha keeps about one in this many trials per rung; default: 3."
    )
    minimum_trials: int | None = Field(
        None, ge=1, le=10_000, description="Trials that must have come as far before median stops one; default: 3."
    )
    max_failures: int = Field(1, ge=0, le=100, description="Times a failed trial is started again, count.")
    time_budget: Seconds | None = Field(
        None,
        gt=0.0,
        description="A command's trials end after this long, best so far kept: seconds, or 90m, 1h30m; default: never.",
    )
    cluster_wait_s: float = Field(
        0.0, ge=0.0, description="Longest wait at the start for a cluster, which is asked to grow, to hold a trial, s."
    )
    placement_timeout_s: float = Field(
        3600.0, ge=60.0, description="Longest wait of a started trial for a place on the cluster, seconds."
    )
    keep_best: int = Field(3, ge=1, description="Trials whose best model stays in the storage, count; others' go.")
    storage: str | None = Field(
        None, description="Absolute path or URL for checkpoints and journals; default: <home>/searches."
    )
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", description="Name of the search; default: made at start."
    )

    @model_validator(mode="after")
    def _resources_and_space(self) -> SearchConfig:
        for key, dimension in self.space.items():
            if not isinstance(dimension, Choice) and dimension.low > dimension.high:
                raise ValueError(f"search.space.{key}: low {dimension.low} is above high {dimension.high}")
        gpus, workers = self.gpus_per_trial, self.workers
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"search.gpus_per_trial is {gpus}: above 1 it must be a whole number")
        if workers > 1 and 0 < gpus < workers:
            raise ValueError(
                f"search.gpus_per_trial {gpus:g} is less than one GPU for each of workers_per_trial {workers}: "
                "workers of one trial cannot share a GPU"
            )
        if gpus > 1 and int(gpus) % workers:
            raise ValueError(f"search.gpus_per_trial {gpus:g} cannot be shared evenly by workers_per_trial {workers}")
        return self

    @model_validator(mode="after")
    def _options_belong(self) -> SearchConfig:
        for kind, choices in (("sampler", _SAMPLERS), ("scheduler", _SCHEDULERS)):
            chosen = getattr(self, kind)
            for option in {option for options in choices.values() for option in options} - set(choices[chosen]):
                if getattr(self, option) is not None:
                    owners = [name for name, options in choices.items() if option in options]
                    raise ValueError(
                        f"search.{option} is for {kind} {' or '.join(owners)}, found {kind} '{chosen}': remove it or "
                        f"set search.{kind}={owners[0]}"
                    )
        numbers = [d for d in self.space.values() if not isinstance(d, Choice) and d.low < d.high]
        choices_of = [key for key, dimension in self.space.items() if isinstance(dimension, Choice)]
        if self.sampler == "cmaes" and self.space and (choices_of or len(numbers) < 2):
            found = f"choice {', '.join(choices_of)}" if choices_of else f"{len(numbers)} of them"
            raise ValueError(
                f"search.sampler cmaes searches two or more dimensions of numbers, found {found}: use sampler tpe or gp"
            )
        return self

    @model_validator(mode="after")
    def _objectives_agree(self) -> SearchConfig:
        several = len(self.objectives) > 1
        if self.objectives[0] != "f1 max":
            raise ValueError(
                f"search.objectives begins with '{self.objectives[0]}': put 'f1 max' first, because schedulers stop "
                "and the gate decides by F1"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"search.objectives has one twice: {self.objectives}")
        if self.max_f1_drop and not several:
            raise ValueError(
                f"search.max_f1_drop is {self.max_f1_drop} with one objective: remove it, or add 'parameters min' or "
                "'latency min' to search.objectives"
            )
        if self.sampler == "cmaes" and several:
            raise ValueError(
                f"search.sampler cmaes has one objective, found {len(self.objectives)}: use sampler tpe or gp"
            )
        if self.sampler == "random" and self.warm_start:
            raise ValueError(
                "search.warm_start is for samplers that learn, found sampler 'random': remove it or use sampler tpe"
            )
        return self

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The chosen sampler's options, as set or their defaults."""
        return self._set_over(_SAMPLERS[self.sampler])

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """The chosen scheduler's options, as set or their defaults."""
        return self._set_over(_SCHEDULERS[self.scheduler])

    def _set_over(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {key: value if getattr(self, key) is None else getattr(self, key) for key, value in defaults.items()}

    @property
    def workers(self) -> int:
        """Data-parallel workers of one trial."""
        return self.workers_per_trial or max(1, math.floor(self.gpus_per_trial))
