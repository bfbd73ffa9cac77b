"""What a search did, read back from its journal: each trial's learning curve, attempts, slot and cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from configs.loading import ConfigError, stored_values
from configs.schema import Settings
from ray_jobs import objectives
from ray_jobs.journal import read_lines
from ray_jobs.tracking import Outcome

_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Epoch:
    """One reported epoch. ``time``: unix seconds of the report; ``seconds``: how long the epoch took."""

    number: int
    time: float
    f1: float
    best_f1: float
    best_epoch: int
    seconds: float


@dataclass
class Attempt:
    """A time in which a trial held its resources: from ``start`` to ``end``, unix seconds, on ``slot`` (from 0).

    ``error``: why another attempt had to follow, where the trial failed.
    """

    start: float
    end: float
    slot: int = 0
    error: str | None = None


@dataclass
class TrialHistory:
    """One trial. It has several ``attempts`` when one failed, or when the search was interrupted."""

    trial_id: str
    number: int
    parameters: dict[str, Any]
    epochs: list[Epoch] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome = "running"
    error: str | None = None
    full_epochs: int = 0
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def f1(self) -> float | None:
        """The best validation F1, None without one."""
        best = self.epochs[-1].best_f1 if self.epochs else math.nan
        return best if math.isfinite(best) else None

    @property
    def best_epoch(self) -> int:
        """The epoch that gave it, 0 without one."""
        return self.epochs[-1].best_epoch if self.epochs else 0

    @property
    def gave_model(self) -> bool:
        """Whether it counts in the ranking."""
        return self.f1 is not None and self.outcome != "failed"

    @property
    def seconds(self) -> float:
        """Time in which the trial held its resources, over all attempts."""
        return sum(attempt.end - attempt.start for attempt in self.attempts)

    @property
    def saved_seconds(self) -> float:
        """What the epochs that it was not given would have cost, at the mean of those it had."""
        if self.outcome not in ("finished", "stopped_early") or not self.epochs:
            return 0.0
        mean = sum(epoch.seconds for epoch in self.epochs) / len(self.epochs)
        return mean * max(0, self.full_epochs - self.epochs[-1].number)


@dataclass(frozen=True)
class SearchHistory:
    """A search. ``trials``: best first. ``pauses``: [start, end] in which nothing ran, longer than a minute."""

    name: str
    settings: Settings
    trials: list[TrialHistory]
    pauses: list[list[float]]
    slots: int

    @property
    def winner(self) -> TrialHistory | None:
        """The trial for the gate (the highest F1, unless objectives say otherwise), None when no trial gave a model."""
        return self.trials[0] if self.trials and self.trials[0].gave_model else None

    @property
    def why(self) -> str | None:
        """With several objectives, why the winner goes to the gate."""
        chosen = objectives.choose(self.trials, self.settings.search)
        return chosen[1] if chosen else None

    @property
    def by_start(self) -> list[TrialHistory]:
        """The trials in the order in which they began."""
        return sorted(self.trials, key=lambda trial: trial.number)

    @property
    def first_error(self) -> str | None:
        """The error of the first trial that has one."""
        return next((trial.error for trial in self.by_start if trial.error), None)

    def elapsed(self, time: float) -> float:
        """Seconds of the search that had passed at ``time`` (unix seconds), pauses left out."""
        begin = min((trial.attempts[0].start for trial in self.trials), default=time)
        return time - begin - sum(max(0.0, min(time, end) - start) for start, end in self.pauses)

    @property
    def seconds(self) -> float:
        """Seconds from the first trial's start to the last one's end, pauses left out."""
        return self.elapsed(max((trial.attempts[-1].end for trial in self.trials), default=0.0)) if self.trials else 0.0

    @property
    def resource(self) -> tuple[str, float]:
        """What a trial's cost is counted in, and how many of it a trial holds: GPUs, or CPUs where it has none."""
        search = self.settings.search
        return ("GPU", search.gpus_per_trial) if search.gpus_per_trial else ("CPU", search.cpus_per_trial)

    def counts(self) -> dict[str, int]:
        """Trials by outcome, those that occur."""
        outcomes: list[str] = [trial.outcome for trial in self.trials]
        return {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(sorted(outcomes, key=_order))}


def read_search(folder: str, name: str) -> SearchHistory:
    """The search whose journal and settings lie in ``folder`` (path or URL). Raises ConfigError if there is none."""
    try:
        lines = read_lines(f"{folder}/journal.jsonl")
        with fsspec.open(f"{folder}/settings.json", "r", encoding="utf-8") as file:
            settings = Settings.model_validate(stored_values(json.load(file), f"{folder}/settings.json"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no search in {folder}: {error}") from None
    return history([json.loads(line) for line in lines], settings, name)


def history(events: Iterable[Mapping[str, Any]], settings: Settings, name: str) -> SearchHistory:
    """The search that wrote ``events``, oldest first; kinds of events that mean nothing here are passed over."""
    trials: dict[str, TrialHistory] = {}
    for event in events:
        trial_id, time = event.get("trial"), float(event.get("time", 0.0))
        if event.get("event") == "started":
            trial = trials.setdefault(event["trial"], TrialHistory(event["trial"], len(trials) + 1, {}))
            trial.parameters, trial.outcome, trial.error = dict(event["parameters"]), "running", None
            trial.attempts.append(Attempt(time, time))
        elif trial_id in trials and event.get("event") in ("epoch", "attempt_failed", "ended"):
            _apply(trials[trial_id], event, time)
    for trial in trials.values():
        trial.full_epochs = trial.parameters.get("training.epochs", settings.training.epochs)
    pauses = _pauses([attempt for trial in trials.values() for attempt in trial.attempts])
    ranked = sorted(trials.values(), key=lambda trial: (trial.outcome == "failed", -(trial.f1 or -1.0), trial.number))
    ranked = objectives.gate_first(ranked, settings.search)
    return SearchHistory(name, settings, ranked, pauses, _place(trials.values()))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Parameters by the last part of their name, where that tells them apart."""
    full = sorted(names)
    last = [name.rpartition(".")[2] for name in full]
    return {name: short if last.count(short) == 1 else name for name, short in zip(full, last, strict=True)}


def duration(seconds: float) -> str:
    """``seconds`` for people: 43 s, 2 min 5 s, 3 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(value: Any, digits: int = 3) -> str:
    """A parameter's value for people."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _apply(trial: TrialHistory, event: Mapping[str, Any], time: float) -> None:
    trial.attempts[-1].end = time
    if event["event"] == "attempt_failed":
        trial.attempts[-1].error = event["error"]
        return
    if event["event"] == "ended":
        trial.outcome, trial.error = event["outcome"], event.get("error")
        return
    metrics = event["metrics"]
    trial.metrics = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    # An attempt that begins anew reports its first epochs again.
    trial.epochs = [epoch for epoch in trial.epochs if epoch.number < metrics["epoch"]]
    trial.epochs.append(
        Epoch(
            metrics["epoch"],
            time,
            float(metrics["validation_f1"]),
            float(metrics["best_validation_f1"]),
            metrics["best_epoch"],
            float(metrics.get("seconds", 0.0)),
        )
    )


def _pauses(attempts: Iterable[Attempt]) -> list[list[float]]:
    pauses, busy_until = [], math.inf
    for start, end in sorted((attempt.start, attempt.end) for attempt in attempts):
        if start - busy_until > _PAUSE_SECONDS:
            pauses.append([busy_until, start])
        busy_until = end if busy_until == math.inf else max(busy_until, end)
    return pauses


def _place(trials: Iterable[TrialHistory]) -> int:
    """Gives each attempt the lowest slot that is free when it starts; returns the number of slots."""
    free_from: list[float] = []
    attempts = [attempt for trial in trials for attempt in trial.attempts]
    for attempt in sorted(attempts, key=lambda attempt: (attempt.start, attempt.end)):
        attempt.slot = next((slot for slot, time in enumerate(free_from) if time <= attempt.start), len(free_from))
        free_from[attempt.slot : attempt.slot + 1] = [attempt.end]
    return len(free_from)


def _order(outcome: str) -> int:
    return ["finished", "stopped_early", "failed", "killed", "running"].index(outcome)
