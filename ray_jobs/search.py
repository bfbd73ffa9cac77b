"""The hyperparameter search: parallel trials on Ray, found by Optuna, logged to MLflow.

    python -m ray_jobs.search --config FILE [--set key=value ...] [--resume NAME] [--dry-run]
    python -m ray_jobs.search --from-run R [--set key=value ...] [--dry-run]

It ends with the best trial by validation F1. It stores the test split for the gate and never looks at it, and it
never touches the registry.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import fsspec

from configs.exit_codes import ExitCode
from configs.loading import load_settings
from configs.schema import Settings
from configs.search import SearchConfig
from ray_jobs import disk, objectives, parent_run, report, warm_start
from ray_jobs.cluster import (
    concurrent_trials,
    connected,
    local_resources,
    look_for_cluster,
    starts_locally,
    wait_for_room,
)
from ray_jobs.command import AllTrialsFailed, StorageUnavailable, job_parser, say
from ray_jobs.data.prepare import Dataset
from ray_jobs.journal import Journal
from ray_jobs.plan import SETTINGS_FILE, begin, dry_run, known_beforehand
from ray_jobs.progress import TrackingCallback, summary_table
from ray_jobs.rerun import EarlierRun, earlier_run
from ray_jobs.resuming import Past, settle
from ray_jobs.tracking import Tracker, TrialRecord
from ray_jobs.trial import OBJECTIVE, SearchData, TrialPlan, count_parameters, run_trial
from ray_jobs.tuning import new_scheduler, new_tuner
from ray_jobs.warm_start import EarlierTrials
from serve_app import mlflow_client
from serve_app.console import run_command
from serve_app.mlflow_client import TrackingUnavailable
from serve_app.refusals import storage_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from optuna.trial import FrozenTrial


_PATIENCE_REQUESTS = 5  # sending one event takes up to four


@dataclass(frozen=True)
class SearchResult:
    """What a search gave. ``trials``: the gate's first, then by F1. ``seconds``: of the whole search. ``front``: the
    Pareto front as people read it, with several objectives."""

    name: str
    parent_run_id: str
    trials: list[TrialRecord]
    seconds: float
    front: str | None = None

    @property
    def best(self) -> TrialRecord:
        """The trial for the gate: the highest validation F1, unless objectives say otherwise."""
        return self.trials[0]

    def counts(self) -> dict[str, int]:
        """Trials by how they ended."""
        outcomes = [trial.outcome for trial in self.trials]
        return {name: outcomes.count(name) for name in ("finished", "stopped_early", "failed")}


def run_search(settings: Settings, resume: str | None = None, repeats: EarlierRun | None = None) -> SearchResult:
    """Runs (or, with the name ``resume``, goes on with) a search; connects to Ray where that has not been done.

    ``repeats``: the run whose data these must be.

    Raises ConfigError, DataError, Unreachable, TrackingUnavailable, StorageUnavailable, and AllTrialsFailed when
    no trial gave a model.
    """
    started = time.monotonic()
    look_for_cluster()
    beginning = begin(settings, resume, repeats)
    name, storage, dataset, data = beginning.name, beginning.storage, beginning.dataset, beginning.data
    if starts_locally():
        concurrent_trials(settings.search, [local_resources()])  # before anything is started or written
    with connected(settings.home) as cluster:
        say(f"Ray at {cluster.address}" + (f", dashboard {cluster.dashboard_url}" if cluster.dashboard_url else ""))
        concurrent = wait_for_room(settings.search)
        client = mlflow_client.connect(settings.tracking)
        earlier = known_beforehand(client, settings.search, beginning)
        if settings.search.warm_start:
            say(earlier.line())
        disk.check_room(storage, disk.needed_bytes(count_parameters(settings, data), settings.search, concurrent))
        prepare_storage(storage, settings, earlier)
        experiment_id = mlflow_client.ensure_experiment(client, settings.tracking.experiment)
        for orphan in parent_run.end_orphans(client, experiment_id):
            say(f"run {orphan} had lost its process: ended as KILLED")
        tracker = open_tracker(client, experiment_id, settings, dataset, name, storage, resume=resume is not None)
        try:
            say(f"search {name}: {settings.search.trials} trials, {concurrent} at a time, run {tracker.parent_run_id}")
            with mlflow_client.Heartbeat.of_run(client, tracker.parent_run_id):
                run_trials(settings, data, tracker, name, storage, concurrent, earlier.trials)
                finish(tracker, name, settings)
        except (AllTrialsFailed, TrackingUnavailable):
            raise  # finish has said how it ended
        except BaseException as error:
            say(f"ending the runs of search {name} (go on with it by --resume {name})")
            abort(tracker, name, settings.search, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
    seconds = time.monotonic() - started
    trials = ranked(tracker, settings.search)
    result = SearchResult(name, tracker.parent_run_id, trials, seconds, objectives.table(trials, settings.search))
    say(summary_table(result.trials))
    if result.front:
        say(result.front)
    return result


def prepare_storage(storage: str, settings: Settings, earlier: EarlierTrials) -> None:
    """Writes into the search's folder what a resume needs, the settings last; it shows that the folder can be written.

    ``earlier``: what the sampler knows beforehand.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(storage)
        disk.make_folder(filesystem, path)
        warm_start.keep(storage, earlier)
        disk.write_whole(f"{storage}/{SETTINGS_FILE}", json.dumps(parent_run.without_credentials(settings), indent=2))
    except Exception as error:  # every store has exceptions of its own
        raise StorageUnavailable(
            f"search.storage {storage} cannot be written: {storage_problem(storage, error)}"
        ) from error


def open_tracker(
    client: MlflowClient,
    experiment_id: str,
    settings: Settings,
    dataset: Dataset,
    name: str,
    storage: str,
    *,
    resume: bool,
) -> Tracker:
    """The search's parent run with everything known at the start, and its tracker, sending."""
    shared = {
        mlflow_client.SEARCH_NAME: name,
        mlflow_client.TEST_DIGEST: dataset.test.digest,
        mlflow_client.TEST_URI: parent_run.freeze_test_split(client, experiment_id, dataset),
        mlflow_client.F1_DEFINITION: dataset.f1.key,
        mlflow_client.MODEL_NAME: settings.tracking.model_name,
        parent_run.TRAIN_DIGEST: dataset.train.digest,
        parent_run.VALIDATION_DIGEST: dataset.validation.digest,
        "trialgate.git_revision": parent_run.git_revision(),
        "trialgate.seed": str(settings.training.seed),
    }
    parent = parent_run.start_parent_run(client, experiment_id, name, settings, shared, resume=resume)
    client.log_dict(parent, dataset.report.as_dict(), "data.json")
    tracker = Tracker(client, experiment_id, Journal(f"{storage}/journal.jsonl"), parent)
    tracker.start(shared)
    return tracker


def run_trials(
    settings: Settings,
    data: SearchData,
    tracker: Tracker,
    name: str,
    storage: str,
    concurrent: int,
    earlier: Sequence[FrozenTrial] = (),
) -> None:
    """All trials that are not over, through Tune. ``earlier``: what the sampler knows beforehand."""
    import ray
    from ray import tune

    settle(tracker, settings, new_scheduler(settings.search, settings.training.epochs))
    past, trials = Past.of(tracker), f"{storage}/trials"
    if len(past.settled) >= settings.search.trials:
        disk.tidy(tracker, trials, settings.search)
        return
    if settings.search.time_budget is not None:
        tracker.deadline = time.monotonic() + settings.search.time_budget
    known = {trial.trial_id: trial.epochs for trial in past.interrupted}
    plan = TrialPlan(settings.model_dump(mode="json"), trials, ray.put(data), known)
    trainable = tune.with_resources(functools.partial(run_trial, plan=plan), {"node:__internal_head__": 0.001})
    with TrackingCallback.of(tracker, name, settings) as callback:
        new_tuner(settings, trainable, callback, storage, concurrent, past, earlier).fit()
        callback.end_running()
    disk.tidy(tracker, trials, settings.search)
    if tracker.ending is not None:
        say(f"search {name} ends with its best so far: {tracker.ending} (go on with it by --resume {name})")
        if tracker.storage_problem is not None:
            raise tracker.storage_problem
        if disk.is_full(tracker.ending):
            raise StorageUnavailable(f"search.storage {storage} is full: {tracker.ending}")


def finish(tracker: Tracker, name: str, settings: Settings) -> None:
    """Ends the parent run with the best trial named on it. Raises AllTrialsFailed if there is none."""
    client, parent, search = tracker.client, tracker.parent_run_id, settings.search
    try:
        try:
            attempts = settings.tracking.max_retries + 1
            tracker.close(stalled_s=_PATIENCE_REQUESTS * attempts * settings.tracking.request_timeout_s)
            tracker.remove_doubles()
        finally:  # people have their page whatever becomes of MLflow
            history = report.leave(tracker, name)
        trials, best = ranked(tracker, search), best_trial(tracker, search)
        client.log_dict(parent, {"trials": [vars(trial) for trial in trials]}, "trials.json")
        client.log_text(parent, summary_table(trials), "trials.txt")
        if front := objectives.table(trials, search):
            client.log_text(parent, front, "front.txt")
        report.to_mlflow(tracker, history)
        name_best(tracker, best)
        if tracker.ending is not None:
            client.set_tag(parent, mlflow_client.ENDING, tracker.ending)
        client.set_terminated(parent, status="FINISHED" if best else "FAILED")
    except Exception as error:
        if not (isinstance(error, TrackingUnavailable) or mlflow_client.is_unreachable(error)):
            raise
        raise TrackingUnavailable(f"{error}\nWhen MLflow is back: --resume {name}") from error
    if best is None:
        errors = [trial.error for trial in tracker.trials.values() if trial.error]  # in the order of their start
        if tracker.ending is not None and not errors:
            raise AllTrialsFailed(f"no trial had an epoch when the search ended: {tracker.ending}; go on with it by "
                                  f"--resume {name}")  # fmt: skip
        raise AllTrialsFailed(f"all {len(trials)} trials failed; the first error was: "
                        f"{errors[0] if errors else 'no trial reported an epoch'}")  # fmt: skip


def abort(tracker: Tracker, name: str, search: SearchConfig, status: Literal["KILLED", "FAILED"]) -> None:
    """Ends trials that run as KILLED and the parent as ``status``, quickly: after ``ray job stop`` there are 3 s."""
    try:
        try:
            for trial in tracker.trials.values():
                if trial.outcome == "running":
                    tracker.trial_ended(trial.trial_id, "killed")
            tracker.close(stalled_s=2.0, at_most_s=2.0)
            name_best(tracker, best_trial(tracker, search))
            tracker.client.set_terminated(tracker.parent_run_id, status=status)
        finally:  # after MLflow, because it takes a second or two
            history = report.leave(tracker, name)
        report.to_mlflow(tracker, history)
    except Exception as error:  # noqa: BLE001 - the next command ends these runs, by their heartbeat
        say(f"MLflow could not be told: {error}")


def best_trial(tracker: Tracker, search: SearchConfig) -> TrialRecord | None:
    """The trial that goes to the gate, which has a model; of an interrupted search its best so far."""
    return next((trial for trial in ranked(tracker, search) if trial.outcome != "failed" and trial.model_uri), None)


def name_best(tracker: Tracker, best: TrialRecord | None) -> None:
    """Names the best trial on the search's run, so that the gate can be given the search, or that there is none."""
    client, parent = tracker.client, tracker.parent_run_id
    if best is not None and best.run_id is not None and best.f1 is not None:
        client.set_tag(parent, mlflow_client.BEST_RUN, best.run_id)
        client.log_metric(parent, OBJECTIVE, best.f1)
    elif (
        best is None and mlflow_client.BEST_RUN in client.get_run(parent).data.tags
    ):  # it was interrupted, and what was best failed
        client.delete_tag(parent, mlflow_client.BEST_RUN)


def ranked(tracker: Tracker, search: SearchConfig) -> list[TrialRecord]:
    """The trials, the one for the gate first, then by validation F1, failed ones last."""
    by_f1 = sorted(tracker.trials.values(), key=lambda trial: (trial.outcome == "failed", -(trial.f1 or -1.0)))
    return objectives.gate_first(by_f1, search)


def document(result: SearchResult) -> dict[str, Any]:
    """The search's JSON document."""
    best = result.best
    return {
        "search": result.name,
        "parent_run_id": result.parent_run_id,
        "run_id": best.run_id,
        "best_validation_f1": best.f1,
        "parameters": best.parameters,
        "model_uri": best.model_uri,
        "trials": result.counts(),
        "seconds": round(result.seconds, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = job_parser("python -m ray_jobs.search", (__doc__ or "").split("\n")[0], config_required=False)
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", metavar="NAME", help="go on with the search of this name")
    again.add_argument("--from-run", metavar="R", help="train a trial's run again, or repeat a search by its run")
    parser.add_argument("--dry-run", action="store_true", help="tell what the search would do, and start no trial")
    args = parser.parse_args(argv)
    if args.config is None and args.from_run is None:
        parser.error("--config is needed, unless --from-run names a run to repeat")

    def work() -> tuple[dict[str, Any], list[str], int]:
        earlier = earlier_run(args.from_run, args.config, args.overrides) if args.from_run else None
        settings = earlier.settings if earlier else load_settings(args.config, args.overrides)
        if args.dry_run:
            return *dry_run(settings, args.resume, earlier), ExitCode.OK
        result = run_search(settings, args.resume, earlier)
        best = result.best
        found = document(result)
        if earlier is not None and best.run_id is not None:
            client = mlflow_client.connect(settings.tracking)
            found |= {"repeats": earlier.run_id, "same": earlier.compare(client, result.parent_run_id, best.run_id)}
        line = f"best trial: run {best.run_id}, validation F1 {best.f1:.4f}, {json.dumps(best.parameters)}"
        return found, [line], ExitCode.OK

    return run_command(work, as_json=args.json, json_file=args.json_file)


if __name__ == "__main__":
    sys.exit(main())
