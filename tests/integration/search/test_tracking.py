"""What reaches MLflow when it is slow, restarted, or out of order: everything, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from configs.schema import TrackingConfig
from ray_jobs.journal import Journal
from ray_jobs.parent_run import start_parent_run
from ray_jobs.tracking import Tracker
from serve_app import mlflow_client as names
from serve_app.mlflow_client import TrackingUnavailable
from tests.integration.search.world import small_settings

METRICS = {"epoch": 1, "best_epoch": 1, "best_validation_f1": 0.5, "model_uri": "/nowhere"}


class Faulty:
    """A client between which and MLflow something happens: ``fault`` is given the call's name, and the call."""

    def __init__(self, client: MlflowClient, fault: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._client, self._fault = client, fault

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return lambda *args, **kwargs: self._fault(name, lambda: value(*args, **kwargs))


def api_error(cause: Exception) -> MlflowException:
    """As MLflow's client raises what its HTTP library did."""
    error = MlflowException("API request failed")
    error.__context__ = cause
    return error


def opened(uri: str, folder: Path, fault: Callable[[str, Callable[[], Any]], Any]) -> tuple[MlflowClient, Tracker]:
    client = names.connect(TrackingConfig(uri=uri))
    experiment = names.ensure_experiment(client, "tracking")
    tags = {names.SEARCH_NAME: "s", names.TEST_DIGEST: "a"}
    parent = start_parent_run(client, experiment, "s", small_settings(folder, uri), tags, resume=False)
    faulty: Any = Faulty(client, fault)
    tracker = Tracker(faulty, experiment, Journal(str(folder / "journal.jsonl")), parent)
    tracker.start({names.SEARCH_NAME: "s"})
    return client, tracker


def one_trial(tracker: Tracker) -> None:
    tracker.trial_started("a", {"training.learning_rate": 0.1})
    tracker.epoch_reported("a", METRICS)
    tracker.trial_ended("a", "finished")


def children(client: MlflowClient, tracker: Tracker) -> list[tuple[str, int]]:
    """(state, metrics) of the runs below the search's."""
    experiment = client.get_run(tracker.parent_run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`{names.PARENT_RUN}` = '{tracker.parent_run_id}'")
    return [(run.info.status, len(run.data.metrics)) for run in runs]


@pytest.mark.parametrize("seen_again", [True, False])
def test_a_run_that_is_made_twice_is_one_in_the_end(tracking_uri: str, tmp_path: Path, seen_again: bool) -> None:
    """The answer comes too late, and the request is sent again, by us or by MLflow's own client."""
    made: list[Any] = []

    def fault(name: str, call: Callable[[], Any]) -> Any:
        if name == "create_run" and not made:
            made.append(call())
            if not seen_again:
                return call()
            raise api_error(requests.ReadTimeout("too late"))
        return call()

    client, tracker = opened(tracking_uri, tmp_path, fault)
    one_trial(tracker)
    tracker.close(30)
    assert len(children(client, tracker)) == (1 if seen_again else 2)
    tracker.remove_doubles()
    assert children(client, tracker) == [("FINISHED", 3)]
    assert client.get_run(tracker.parent_run_id).info.lifecycle_stage == "active"


def test_a_trial_takes_five_calls_and_no_search_for_a_run_that_cannot_be_there(
    tracking_uri: str, tmp_path: Path
) -> None:
    calls: list[str] = []

    def note(name: str, call: Callable[[], Any]) -> Any:
        calls.append(name)
        return call()

    client, tracker = opened(tracking_uri, tmp_path, note)
    one_trial(tracker)
    tracker.close(30)
    assert calls == ["create_run", "log_batch", "log_batch", "log_batch", "set_terminated"]
    assert children(client, tracker) == [("FINISHED", 3)]


def test_a_proxy_that_answers_for_mlflow_while_it_is_away_loses_nothing(tracking_uri: str, tmp_path: Path) -> None:
    answers = iter(["too many 503 error responses"] * 6)

    def fault(name: str, call: Callable[[], Any]) -> Any:
        if name == "log_batch" and (answer := next(answers, None)):
            raise api_error(requests.exceptions.RetryError(answer))
        return call()

    client, tracker = opened(tracking_uri, tmp_path, fault)
    one_trial(tracker)
    tracker.close(30)
    assert children(client, tracker) == [("FINISHED", 3)]


def test_an_empty_double_of_the_search_is_not_taken_for_it(tracking_uri: str, tmp_path: Path) -> None:
    """A search whose end did not come to remove it goes on under the run that was kept alive."""
    client, tracker = opened(tracking_uri, tmp_path, lambda name, call: call())
    tracker.close(30)
    parent = client.get_run(tracker.parent_run_id)
    settings = small_settings(tmp_path, tracking_uri)
    for place in range(3):  # one of which MLflow lists before the other
        tags = {key: value for key, value in parent.data.tags.items() if key.startswith("trialgate.")}
        client.create_run(parent.info.experiment_id, parent.info.start_time + place, tags, run_name="s")
    client.set_tag(parent.info.run_id, names.HEARTBEAT, f"{float(parent.data.tags[names.HEARTBEAT]) + 10:.0f}")
    client.set_terminated(parent.info.run_id, "KILLED")
    again = start_parent_run(client, parent.info.experiment_id, "s", settings, {names.TEST_DIGEST: "a"}, resume=True)
    assert again == parent.info.run_id


def test_a_double_that_may_not_be_removed_fails_nothing(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(name: str, call: Callable[[], Any]) -> Any:
        if name == "delete_run":
            raise api_error(requests.HTTPError("403 Forbidden"))
        return call()

    client, tracker = opened(tracking_uri, tmp_path, fault)
    one_trial(tracker)
    tracker.close(30)
    parent = client.get_run(tracker.parent_run_id)
    tags = {names.KIND: names.KIND_TRIAL, names.SEARCH_NAME: "s"}
    double = client.create_run(parent.info.experiment_id, tags=tags).info.run_id
    tracker.remove_doubles()
    assert f"run {double}, an empty double, cannot be removed" in caplog.text


def test_what_mlflow_will_not_take_holds_nothing_else_up(tracking_uri: str, tmp_path: Path) -> None:
    def fault(name: str, call: Callable[[], Any]) -> Any:
        if name == "set_terminated":
            raise api_error(requests.exceptions.RetryError("too many 500 error responses"))
        return call()

    client, tracker = opened(tracking_uri, tmp_path, fault)
    one_trial(tracker)
    tracker.close(30)
    assert children(client, tracker) == [("RUNNING", 3)]


def test_mlflow_that_takes_one_event_after_another_is_waited_for(tracking_uri: str, tmp_path: Path) -> None:
    """However many there are: it is slow, not gone. One that takes none is given up."""
    slow = threading.Event()

    def fault(name: str, call: Callable[[], Any]) -> Any:
        slow.wait(0.25)
        return call()

    client, tracker = opened(tracking_uri, tmp_path, fault)
    for _ in range(6):
        one_trial(tracker)
    started = time.monotonic()
    tracker.close(stalled_s=5)
    assert time.monotonic() - started > 5, "all of it must take longer than one event may"
    assert children(client, tracker) == [("FINISHED", 3)]


def test_mlflow_that_is_gone_is_given_up_and_told_on_resume(tracking_uri: str, tmp_path: Path) -> None:
    def fault(name: str, call: Callable[[], Any]) -> Any:
        raise api_error(requests.ConnectionError("refused"))

    client, tracker = opened(tracking_uri, tmp_path, fault)
    one_trial(tracker)
    with pytest.raises(TrackingUnavailable, match="the journal keeps them"):
        tracker.close(stalled_s=1.0)
    assert children(client, tracker) == []

    client.set_tag(tracker.parent_run_id, names.OUTCOME, "killed")  # as the next command finds and ends it
    client.set_terminated(tracker.parent_run_id, "KILLED")
    experiment = client.get_run(tracker.parent_run_id).info.experiment_id
    tags = {names.TEST_DIGEST: "a"}
    settings = small_settings(tmp_path, tracking_uri)
    assert start_parent_run(client, experiment, "s", settings, tags, resume=True) == tracker.parent_run_id
    assert names.OUTCOME not in client.get_run(tracker.parent_run_id).data.tags
    again = Tracker(client, experiment, Journal(str(tmp_path / "journal.jsonl")), tracker.parent_run_id)
    again.start({names.SEARCH_NAME: "s"})
    again.close(30)
    assert children(client, again) == [("FINISHED", 3)]
