"""Going on with a search: what its journal says had happened, told again to a new Optuna study and scheduler.

Tune's own restore starts from snapshots that lag behind and leave out the scheduler's rungs. The journal has every
event, so after ``--resume`` no trial that was over runs again, and the others go on under their own ids.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.experiment.config_parser import _create_trial_from_spec
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchGenerator
from ray.tune.search.searcher import Searcher

from configs.schema import Settings
from ray_jobs.progress import ran_to_its_end
from ray_jobs.tracking import Tracker, TrialRecord

if TYPE_CHECKING:
    import optuna
    from ray.tune.experiment import Trial


@dataclass(frozen=True)
class EarlierTrial:
    """A trial as schedulers see it: by its id."""

    trial_id: str


@dataclass(frozen=True)
class Past:
    """What had happened. ``settled``: trials that are over; ``interrupted``: those to go on with; oldest first.

    ``epochs``: (trial id, reported metrics) of all epochs in their order.
    """

    settled: Sequence[TrialRecord] = ()
    interrupted: Sequence[TrialRecord] = ()
    epochs: Sequence[tuple[str, dict[str, Any]]] = ()

    @classmethod
    def of(cls, tracker: Tracker) -> Past:
        """The past of the search whose journal ``tracker`` has read."""
        trials = list(tracker.trials.values())
        over = ("finished", "stopped_early", "failed")
        return cls(
            [trial for trial in trials if trial.outcome in over],
            [trial for trial in trials if trial.outcome not in over],
            [(event["trial"], event["metrics"]) for event in tracker.journal.events if event["event"] == "epoch"],
        )

    def of_trial(self, trial_id: str) -> Iterator[dict[str, Any]]:
        """The metrics of one trial's epochs, in order."""
        return (metrics for trial, metrics in self.epochs if trial == trial_id)

    @property
    def trials(self) -> list[TrialRecord]:
        """All of them."""
        return [*self.settled, *self.interrupted]

    def fill(self, study: optuna.Study, objectives: Sequence[str], space: Any) -> None:
        """Puts settled trials into ``study`` with their values of the ``objectives``, and interrupted ones into its
        queue, so that their parameters are the first suggestions."""
        import optuna

        for trial in self.settled:
            values = [trial.metrics[name] for name in objectives if name in trial.metrics]
            complete = trial.outcome != "failed" and len(values) == len(objectives)
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
                    params=trial.parameters,
                    distributions=space,
                    values=values if complete else None,
                )
            )
        for trial in self.interrupted:
            study.enqueue_trial(trial.parameters)

    def tell(self, scheduler: TrialScheduler) -> dict[str, str]:
        """Gives a new ``scheduler`` all epochs in their order. Returns its last decision on each interrupted trial."""
        decisions: dict[str, str] = {}
        known: dict[str, EarlierTrial] = {}
        for trial_id, metrics in self.epochs:
            if trial_id not in known:
                known[trial_id] = EarlierTrial(trial_id)
                scheduler.on_trial_add(None, known[trial_id])  # type: ignore[arg-type]
            decisions[trial_id] = scheduler.on_trial_result(None, known[trial_id], metrics)  # type: ignore[arg-type]
        for trial in self.interrupted:
            # The median rule knows trials as objects: this one would be another trial beside the one that goes on.
            getattr(scheduler, "_results", {}).pop(known.get(trial.trial_id), None)
        return {trial.trial_id: decisions.get(trial.trial_id, TrialScheduler.CONTINUE) for trial in self.interrupted}


def settle(tracker: Tracker, settings: Settings, scheduler: TrialScheduler | None) -> None:
    """Ends the trials that were over when the driver died before it could say so: at their last epoch, out of
    patience, or stopped by ``scheduler`` (a new one, which is used up by this)."""
    past = Past.of(tracker)
    decisions = past.tell(scheduler) if scheduler is not None else {}
    for trial in past.interrupted:
        if trial.epochs and ran_to_its_end(trial, settings):
            tracker.trial_ended(trial.trial_id, "finished")
        elif trial.epochs and decisions.get(trial.trial_id) == TrialScheduler.STOP:
            tracker.trial_ended(trial.trial_id, "stopped_early")
        elif trial.outcome == "running":  # so that the time until now is not taken for the trial's
            tracker.trial_ended(trial.trial_id, "killed", at=trial.started + trial.seconds)


class ContinuedSearch(SearchGenerator):
    """Tune's generator of trials, whose first ones are the interrupted ones, under the ids that they had.

    ``searcher``: gives their parameters first (``Past.fill``).
    """

    def __init__(self, searcher: Searcher, past: Past) -> None:
        super().__init__(searcher)
        self._waiting = [trial.trial_id for trial in past.interrupted]
        self._epochs: dict[str, int] = {}

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        """As Tune's, but for the id."""
        from ray.tune.experiment import Trial

        trial_id = self._waiting[0] if self._waiting else Trial.generate_id()
        config = self.searcher.suggest(trial_id)
        if config is None:
            return None
        if self._waiting:
            del self._waiting[0]
        self._counter += 1
        spec = {**copy.deepcopy(experiment_spec), "config": config}
        return _create_trial_from_spec(
            spec, self._parser, evaluated_params=config, experiment_tag=str(self._counter), trial_id=trial_id
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """As Tune's, but a trial that goes on and tells again what it had reached is heard once."""
        if result["epoch"] > self._epochs.get(trial_id, 0):
            self._epochs[trial_id] = result["epoch"]
            super().on_trial_result(trial_id, result)


class OneOfAKind(Searcher):
    """The searcher of a search without a space: nothing to choose."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """No parameters."""
        return {}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to bring back."""
