"""The trials of a search in MLflow: one child run each, under the search's run, written by the driver alone.

Every event is appended to a journal in the search's storage first and sent to MLflow from a thread, so a slow or lost
server never holds up training. Sending is idempotent (runs are found by their tags, points carry the journal's times),
so a journal can be sent again from its beginning.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ray_jobs.command import StorageUnavailable
from ray_jobs.journal import Journal
from serve_app import mlflow_client as names
from serve_app.mlflow_client import TrackingUnavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Outcome = Literal["running", "finished", "stopped_early", "failed", "killed"]
_STATUS = {"finished": "FINISHED", "stopped_early": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_REFUSALS = 3
_RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15)


@dataclass
class TrialRecord:
    """What is known of one trial. ``seconds``: from its start to its end. ``f1``: best validation F1 so far."""

    trial_id: str
    parameters: dict[str, Any]
    started: float
    outcome: Outcome = "running"
    f1: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    model_uri: str | None = None
    error: str | None = None
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Tracker:
    """Writes a search to its journal and to MLflow. ``trials`` is the state of all trials, by Tune's trial id."""

    def __init__(self, client: MlflowClient, experiment_id: str, journal: Journal, parent_run_id: str) -> None:
        self.client = client
        self.parent_run_id = parent_run_id
        self.trials: dict[str, TrialRecord] = {}
        self.deadline = math.inf  # of the search, by time.monotonic()
        self.ending: str | None = None  # why the search ends before its last trial
        self.storage_problem: StorageUnavailable | None = None  # since when nothing is written to the journal
        self._experiment_id = experiment_id
        self._journal = journal
        self._shared_tags: dict[str, str] = {}
        self._run_ids: dict[str, str] = {}
        self._perhaps: set[str] = set()  # trials of which MLflow may have a run whose id is not known here
        self._between: set[str] = set()  # trials that wait for their next attempt
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._sent = 0  # events
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._problem: Exception | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._send_all, name="mlflow-writer", daemon=True)

    @property
    def journal(self) -> Journal:
        """The journal that it writes."""
        return self._journal

    def start(self, shared_tags: Mapping[str, str]) -> None:
        """Begins to send; ``shared_tags`` go on every trial's run. Events of an earlier attempt are sent again."""
        self._shared_tags = dict(shared_tags)
        for event in self._journal.events:
            self._apply_to_records(event)
            self._perhaps.add(event["trial"])
            self._queue.put(event)
        self._thread.start()

    def trial_started(self, trial_id: str, parameters: Mapping[str, Any]) -> None:
        """A trial begins, or begins again after a failure."""
        if trial_id not in self.trials or self.trials[trial_id].outcome != "running" or trial_id in self._between:
            self._record({"event": "started", "trial": trial_id, "parameters": dict(parameters)})

    def epoch_reported(self, trial_id: str, metrics: Mapping[str, Any]) -> None:
        """A trial finished an epoch."""
        self._record({"event": "epoch", "trial": trial_id, "metrics": dict(metrics)})

    def attempt_failed(self, trial_id: str, error: str) -> None:
        """An attempt at a trial failed, and another follows."""
        self._record({"event": "attempt_failed", "trial": trial_id, "error": error})

    def trial_ended(self, trial_id: str, outcome: Outcome, error: str | None = None, at: float | None = None) -> None:
        """A trial is over; ``at``: since when, Unix seconds (default: now)."""
        self._record({"event": "ended", "trial": trial_id, "outcome": outcome, "error": error}, at)

    def model_removed(self, trial_id: str) -> None:
        """A trial's model is gone: better ones have taken its place."""
        self._record({"event": "removed", "trial": trial_id})

    def close(self, stalled_s: float, at_most_s: float = threading.TIMEOUT_MAX) -> None:
        """Waits until MLflow has everything. Raises TrackingUnavailable when it has taken no event for ``stalled_s``
        seconds, or not all of them in ``at_most_s``."""
        end = time.monotonic() + at_most_s
        self._closing.set()
        self._queue.put(None)
        sent = -1
        while self._thread.is_alive() and sent < self._sent and time.monotonic() < end:
            sent = self._sent
            self._thread.join(min(stalled_s, max(0.0, end - time.monotonic())))
        self._given_up.set()
        if self._thread.is_alive() or self._problem is not None:
            raise TrackingUnavailable(
                f"MLflow does not have all results: {self._problem or 'it does not answer'}; the journal keeps them"
            )

    def remove_doubles(self) -> None:
        """Removes the empty runs of this search that MLflow made beside those in use: a request that it answers too
        late is sent again, and what it makes of the first one only it knows."""
        used = {self.parent_run_id, *self._run_ids.values()}
        mine = f"tags.`{names.SEARCH_NAME}` = '{self._shared_tags[names.SEARCH_NAME]}'"
        for run in self.client.search_runs([self._experiment_id], mine, max_results=50_000):
            kind = run.data.tags.get(names.KIND)
            if kind in (names.KIND_SEARCH, names.KIND_TRIAL) and run.info.run_id not in used and not run.data.metrics:
                try:
                    self.client.delete_run(run.info.run_id)
                except Exception as error:
                    if names.is_unreachable(error):
                        raise
                    logger.warning("run %s, an empty double, cannot be removed: %s", run.info.run_id, error)

    def _record(self, event: dict[str, Any], at: float | None = None) -> None:
        event = {"time": time.time() if at is None else at, **event}
        if self.storage_problem is None:
            try:
                self._journal.append(event)
            except StorageUnavailable as error:
                # Raised here, inside Tune, it would lose its type. The search is told to end, and raises it then.
                self.storage_problem, self.ending = error, str(error)
        self._apply_to_records(event)
        self._queue.put(event)

    def _apply_to_records(self, event: Mapping[str, Any]) -> None:
        trial_id = event["trial"]
        if event["event"] == "started":
            trial = self.trials.setdefault(trial_id, TrialRecord(trial_id, event["parameters"], event["time"]))
            trial.outcome, trial.error = "running", None
            trial.started = event["time"] - trial.seconds  # the time that it lay still does not count
            self._between.discard(trial_id)
            return
        trial = self.trials[trial_id]
        if event["event"] == "removed":
            trial.model_uri = None
            return
        trial.seconds = event["time"] - trial.started
        if event["event"] == "epoch":
            metrics = event["metrics"]
            trial.metrics = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
            trial.epochs, trial.best_epoch = metrics["epoch"], metrics["best_epoch"]
            trial.f1, trial.model_uri = metrics["best_validation_f1"], metrics["model_uri"]
        elif event["event"] == "attempt_failed":
            self._between.add(trial_id)
        else:
            trial.outcome, trial.error = event["outcome"], event["error"]

    def _send_all(self) -> None:
        while (event := self._queue.get()) is not None:
            attempt = refusals = 0
            while True:
                try:
                    self._send(event)
                    self._problem = None
                    break
                except Exception as error:  # noqa: BLE001 - whatever MLflow does, training goes on
                    refusals += not names.is_unreachable(error)
                    if refusals > _REFUSALS:
                        # It answers, and will not take this one: a run deleted by hand, say. Others must not wait.
                        logger.warning("MLflow refused an event, which stays in the journal alone: %s", error)
                        self._problem = None
                        break
                    self._problem = error
                    if not self._warned:
                        logger.warning("MLflow does not answer, results wait in the journal: %s", error)
                        self._warned = True
                    waited = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                    if self._closing.wait(waited) and self._given_up.wait(_RETRY_SECONDS[0]):
                        return
                    attempt += 1
            self._sent += 1

    def _send(self, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        known = event["trial"] in self._run_ids or event["trial"] in self._perhaps
        run_id, millis = self._run_of(event), int(event["time"] * 1000)
        if event["event"] == "epoch":
            numbers = {k: v for k, v in event["metrics"].items() if isinstance(v, int | float) and k != "epoch"}
            step = event["metrics"]["epoch"]
            words = {k: v for k, v in event["metrics"].items() if isinstance(v, str) and k != "model_uri" and step == 1}
            self.client.log_batch(
                run_id,
                metrics=[Metric(k, float(v), millis, step) for k, v in numbers.items()],
                tags=[RunTag(f"trialgate.{k}", v) for k, v in words.items()],
            )
        elif event["event"] == "started":
            parameters = [Param(key, str(value)) for key, value in event["parameters"].items()]
            self.client.log_batch(run_id, params=parameters)
            if known:
                self.client.update_run(run_id, status="RUNNING")  # of a trial that goes on it had been another
        elif event["event"] == "attempt_failed":
            self.client.log_batch(run_id, tags=[RunTag("trialgate.retried_after", event["error"][:4000])])
        elif event["event"] == "removed":
            tag = RunTag(names.MODEL_REMOVED, "only the models of the best trials are kept: search.keep_best")
            self.client.log_batch(run_id, tags=[tag, RunTag(names.MODEL_URI, "")])
        else:
            trial = self.trials[event["trial"]]
            tags = {names.OUTCOME: event["outcome"]}
            if trial.model_uri:
                tags[names.MODEL_URI] = trial.model_uri
            if event["error"]:
                tags["trialgate.error"] = event["error"][:4000]
            metrics = [Metric("trial_seconds", trial.seconds, millis, 0)]
            self.client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
            self.client.set_terminated(run_id, status=_STATUS[event["outcome"]], end_time=millis)

    def _run_of(self, event: Mapping[str, Any]) -> str:
        trial_id = event["trial"]
        if trial_id not in self._run_ids:
            wanted = f"tags.`{names.TRIAL_ID}` = '{trial_id}' and tags.`{names.PARENT_RUN}` = '{self.parent_run_id}'"
            found = self.client.search_runs([self._experiment_id], wanted) if trial_id in self._perhaps else []
            self._perhaps.add(trial_id)  # MLflow may make one and its answer be lost
            if found:
                self._run_ids[trial_id] = max(found, key=lambda run: len(run.data.metrics)).info.run_id
            else:
                tags = {
                    **self._shared_tags,
                    names.KIND: names.KIND_TRIAL,
                    names.TRIAL_ID: trial_id,
                    names.PARENT_RUN: self.parent_run_id,
                }
                run = self.client.create_run(
                    self._experiment_id,
                    start_time=int(event["time"] * 1000),
                    tags=tags,
                    run_name=f"{self._shared_tags.get(names.SEARCH_NAME, 'trial')}-{trial_id}",
                )
                self._run_ids[trial_id] = run.info.run_id
            self.trials[trial_id].run_id = self._run_ids[trial_id]
        return self._run_ids[trial_id]
