"""What people see of a search: one live table on a terminal, plain lines in a job's log, a table at the end."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, Stopper

from configs.schema import Settings
from ray_jobs import disk
from ray_jobs.history import duration, short
from ray_jobs.trial import release_workers

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_jobs.tracking import Tracker, TrialRecord


@dataclass
class Progress:
    """How far a search is. ``started``: of this command, by the monotonic clock; ``over_before``: trials that ended
    before it, in a search that goes on."""

    tracker: Tracker
    settings: Settings
    started: float = field(default_factory=time.monotonic)
    over_before: int = 0

    @property
    def over(self) -> int:
        """Trials that have ended."""
        return sum(trial.outcome not in ("running", "killed") for trial in list(self.tracker.trials.values()))

    def line(self) -> str:
        """Trials over, time, an estimate of what is left at the pace until now, and the best so far."""
        elapsed, total = time.monotonic() - self.started, self.settings.search.trials
        over, left = self.over, ""
        if over > self.over_before and over < total:
            running = [trial for trial in list(self.tracker.trials.values()) if trial.outcome == "running"]
            begun = sum(min(1.0, trial.epochs / self.settings.training.epochs) for trial in running)
            seconds = elapsed / (over - self.over_before + begun) * (total - over - begun)
            left = f", about {duration(seconds)} left"
        usable = [trial for trial in list(self.tracker.trials.values()) if trial.outcome != "failed"]
        scores = [trial.f1 for trial in usable if trial.f1 is not None]
        best = f", best validation F1 {max(scores):.4f}" if scores else ""
        return f"{over} of {total} trials over after {duration(elapsed)}{left}{best}"


# Tune pickles its callbacks into the state that it keeps, and trackers hold threads and connections. So a callback
# travels with the name of its search alone and finds the tracker of this process here.
_searches: dict[str, Progress] = {}


class TrackingCallback(Callback):
    """Hands Tune's events to the search's tracker, and prints a line for each where there is no live table."""

    def __init__(self, search: str) -> None:
        self._search = search

    @property
    def search(self) -> str:
        """The search's name."""
        return self._search

    @classmethod
    @contextlib.contextmanager
    def of(cls, tracker: Tracker, search: str, settings: Settings) -> Iterator[TrackingCallback]:
        """A callback that is bound to ``tracker`` inside the context, where a terminal has the live table."""
        progress = _searches[search] = Progress(tracker, settings)
        progress.over_before = progress.over
        try:
            with _quiet_tune(), _live_table(progress) if sys.stderr.isatty() else contextlib.nullcontext():
                yield cls(search)
        finally:
            del _searches[search]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial was started."""
        tracker = _searches[self._search].tracker
        tracker.trial_started(trial.trial_id, trial.config)
        parameters = ", ".join(f"{key} {short(value)}" for key, value in trial.config.items())
        self._line(trial, f"begins with {parameters}" if parameters else "begins")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reported an epoch."""
        tracker, settings = _searches[self._search].tracker, _searches[self._search].settings
        kept = {key: value for key, value in result.items() if key in _EPOCH_FIELDS or key.startswith("system/")}
        if kept["epoch"] <= tracker.trials[trial.trial_id].epochs:
            return  # a trial that goes on tells again what it had reached
        tracker.epoch_reported(trial.trial_id, kept)
        chosen = f"; {kept['precision']}: {kept['precision_reason']}" if kept["epoch"] == 1 else ""
        self._line(
            trial,
            f"epoch {kept['epoch']}/{settings.training.epochs}: validation F1 {kept['validation_f1']:.4f}, "
            f"loss {kept['train_loss']:.4f} (validation {kept['validation_loss']:.4f}), "
            f"{kept['train_texts_per_second']:.0f} texts/s{chosen}",
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended, by itself or because the scheduler stopped it."""
        tracker, settings = _searches[self._search].tracker, _searches[self._search].settings
        release_workers(trial.trial_id)
        record = tracker.trials[trial.trial_id]
        stopped = not ran_to_its_end(record, settings)
        tracker.trial_ended(trial.trial_id, "stopped_early" if stopped else "finished")
        self._tidy(trial)
        self._line(trial, f"{'stopped early' if stopped else 'finished'}, best validation F1 {record.f1 or 0:.4f}, "
                   f"{duration(record.seconds)}", over=True)  # fmt: skip

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for good."""
        tracker = _searches[self._search].tracker
        release_workers(trial.trial_id)
        if trial.trial_id not in tracker.trials:  # it failed before it could start
            tracker.trial_started(trial.trial_id, trial.config)
        message = failure_message(trial)
        tracker.trial_ended(trial.trial_id, "failed", message)
        self._tidy(trial)
        self._end_if_full(message)
        self._line(trial, f"failed: {message}", over=True)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed and is tried again."""
        release_workers(trial.trial_id)
        message = failure_message(trial)
        _searches[self._search].tracker.attempt_failed(trial.trial_id, message)
        self._line(trial, f"failed and goes on from its last epoch: {message}")
        self._end_if_full(message)

    def end_running(self) -> None:
        """Ends the trials that run when Tune has returned: a search that is told to end leaves them without a word."""
        search = _searches[self._search]
        for record in search.tracker.trials.values():
            if record.outcome == "running":
                release_workers(record.trial_id)
                search.tracker.trial_ended(record.trial_id, "killed")

    def _tidy(self, ended: Trial) -> None:
        tracker, settings = _searches[self._search].tracker, _searches[self._search].settings
        disk.tidy(tracker, f"{settings.search.storage}/{self._search}/trials", settings.search, ended.trial_id)

    def _end_if_full(self, message: str) -> None:
        if disk.is_full(message):  # the next trials would fail as well
            _searches[self._search].tracker.ending = message

    def _line(self, trial: Trial, text: str, *, over: bool = False) -> None:
        if not sys.stderr.isatty():
            print(f"trial {trial.trial_id}: {text}", file=sys.stderr)
            if over:
                print(_searches[self._search].line(), file=sys.stderr)
            sys.stderr.flush()


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune logs some 50 lines of every attempt that fails, and as many when a disk is full. What they say is told in
    one here, and the whole of it is in the ``error.txt`` of Tune's folder of the trial."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _live_table(progress: Progress) -> contextlib.AbstractContextManager[None]:
    from ray_jobs.live import LiveTable

    tracker = progress.tracker
    return LiveTable(lambda: list(tracker.trials.values()), progress.line, progress.settings.training.epochs).shown()


class EndWhenTold(Stopper):
    """Ends all trials once the search's tracker has a reason to."""

    def __init__(self, search: str) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the disk is full or the time is up."""
        tracker, settings = _searches[self._search].tracker, _searches[self._search].settings
        if time.monotonic() > tracker.deadline and tracker.ending is None:
            tracker.ending = f"search.time_budget, {settings.search.time_budget:g} s, is used up"
        return tracker.ending is not None


_EPOCH_FIELDS = frozenset(
    (
        "epoch step train_loss validation_loss validation_f1 validation_accuracy best_validation_f1 best_epoch "
        "learning_rate train_texts_per_second train_tokens_per_second seconds temperature model_uri precision "
        "precision_reason processor parameters latency_ms"
    ).split()
)


def ran_to_its_end(trial: TrialRecord, settings: Settings) -> bool:
    """Whether a trial had all its epochs or ran out of patience; otherwise somebody stopped it."""
    epochs = trial.parameters.get("training.epochs", settings.training.epochs)
    patience = trial.parameters.get("training.early_stop_patience", settings.training.early_stop_patience)
    return trial.epochs >= epochs or (patience is not None and trial.epochs - trial.best_epoch >= patience)


def failure_message(trial: Trial) -> str:
    """The error itself, out of the layers of text that Train and Tune put around it: the line that says that Ray ended
    a process for want of memory, else the last line that names an error, else (a worker that died without a word) the
    last line."""
    text = ""
    error = trial.get_error() if hasattr(trial, "get_error") else None
    if error is not None:
        text = str(error)
    elif trial.error_file:
        with open(trial.error_file, encoding="utf-8", errors="replace") as file:
            text = file.read()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith(":")]  # others announce what follows
    memory = [line for line in told if "running low on memory" in line]
    named = [line for line in told if "Error" in line.split(":")[0] or "Exception" in line.split(":")[0]]
    return (memory or named or lines or ["no message"])[-1]


def summary_table(trials: Sequence[TrialRecord]) -> str:
    """One row per trial, best first, as aligned text."""
    parameters = sorted({key for trial in trials for key in trial.parameters})
    header = [
        "",
        "trial",
        "best F1",
        "epoch",
        "epochs",
        "seconds",
        "outcome",
        *(k.rpartition(".")[2] for k in parameters),
    ]
    rows = [header]
    for place, trial in enumerate(trials, start=1):
        rows.append(
            [
                str(place),
                trial.trial_id,
                "-" if trial.f1 is None else f"{trial.f1:.4f}",
                str(trial.best_epoch or "-"),
                str(trial.epochs),
                f"{trial.seconds:.0f}",
                trial.outcome.replace("_", " "),
                *(short(trial.parameters.get(key, "")) for key in parameters),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
