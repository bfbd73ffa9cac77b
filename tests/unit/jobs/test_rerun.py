"""What --from-run makes of an earlier run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from configs.loading import ConfigError, load_settings
from ray_jobs import rerun, search
from ray_jobs.parent_run import TRAIN_DIGEST, VALIDATION_DIGEST, without_credentials
from ray_jobs.rerun import EarlierRun, earlier_run
from serve_app import mlflow_client as names

SPACE = [
    "search.space.training.learning_rate={type: loguniform, low: 1.0e-5, high: 1.0e-3}",
    "search.space.training.batch_size={type: int, low: 8, high: 64}",
    "search.space.training.schedule={type: choice, values: [linear, cosine]}",
    "search.space.training.warmup_steps={type: choice, values: [0, 10]}",
]
PARAMETERS = {
    "training.learning_rate": 0.1 + 0.2 - 0.29999,
    "training.batch_size": 17,
    "training.schedule": "cosine",
    "training.warmup_steps": 10,
}


class FakeClient:
    """The parts of MlflowClient that a repetition uses: a search, one trial of it, and a run of somebody else."""

    tracking_uri = "http://somebody:secret@mlflow:5000"

    def __init__(self, settings: dict[str, Any] | None) -> None:
        self.settings = settings
        trial = {names.KIND: names.KIND_TRIAL, names.PARENT_RUN: "search"}
        self.runs = {
            "search": run("search", {names.KIND: names.KIND_SEARCH, "trialgate.git_revision": "abc"}),
            "trial": run("trial", trial, {key: str(value) for key, value in PARAMETERS.items()}),
            "other": run("other", {}),
            "deleted": run("deleted", trial, stage="deleted"),
        }
        self.curves: dict[str, list[float]] = {}

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        if self.settings is None:
            raise OSError("no such artifact")
        (Path(folder) / path).write_text(json.dumps(self.settings))
        return f"{folder}/{path}"

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs.setdefault(run_id, run(run_id, {})).data.tags[key] = value

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=step, value=f1) for step, f1 in enumerate(self.curves[run_id], start=1)]


def run(run_id: str, tags: dict[str, str], params: dict[str, str] | None = None, stage: str = "active") -> Any:
    """A run as MLflow's client gives it."""
    return SimpleNamespace(
        info=SimpleNamespace(run_id=run_id, lifecycle_stage=stage),
        data=SimpleNamespace(tags=dict(tags), params=params or {}),
    )


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.chdir(tmp_path)
    there = [
        "home=/elsewhere",
        "search.name=taken",
        "search.trials=20",
        "training.epochs=4",
        "tracking.experiment=mine",
    ]
    fake = FakeClient(without_credentials(load_settings(None, [*SPACE, *there])))
    monkeypatch.setattr(names, "connect", lambda tracking: fake)
    monkeypatch.setattr(rerun, "git_revision", lambda: "abc")
    return fake


def test_a_trial_is_repeated_alone_and_exactly(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = earlier_run("trial", None, ["home=/here"])
    settings = earlier.settings
    values = {key: dimension.values for key, dimension in settings.search.space.items()}  # type: ignore[union-attr]
    assert values == {key: [value] for key, value in PARAMETERS.items()}
    assert [type(values[key][0]) for key in PARAMETERS] == [float, int, str, int]
    assert (settings.search.trials, settings.search.scheduler) == (1, "none")
    assert (settings.training.epochs, settings.tracking.experiment) == (4, "mine")
    assert (settings.home, settings.search.storage, settings.search.name) == ("/here", "/here/searches", None)
    assert capsys.readouterr().err == ""


def test_a_search_is_repeated_with_its_settings(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = earlier_run("search", None, ["home=/here", "search.max_concurrent=1"])
    assert earlier.trial is None
    assert earlier.settings.search.trials == 20
    assert set(earlier.settings.search.space) == set(PARAMETERS)
    assert capsys.readouterr().err == ""


def test_what_changes_the_result_is_said(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIALGATE_TRAINING__SEED", "7")
    monkeypatch.setattr(rerun, "git_revision", lambda: "def")
    earlier_run("trial", None, ["home=/here", "training.epochs=2"])
    assert capsys.readouterr().err.splitlines() == [
        "not as run trial had it: training.epochs 4 is 2 now; the result will differ",
        "not as run trial had it: training.seed 42 is 7 now; the result will differ",
        "run trial was made by code abc, this is def",
    ]


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("nowhere", "there is no such run at http://mlflow:5000"),
        ("other", "neither a trial nor a search of Trialgate"),
        ("deleted", "run deleted is deleted: restore it"),
    ],
)
def test_runs_that_cannot_be_repeated(client: FakeClient, run_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        earlier_run(run_id)


def test_search_without_settings(client: FakeClient) -> None:
    client.settings = None
    with pytest.raises(ConfigError, match="search search has no readable settings.json among its artifacts"):
        earlier_run("trial")


def test_other_data_are_refused_with_both_digests(client: FakeClient) -> None:
    digests = {TRAIN_DIGEST: "a" * 64, VALIDATION_DIGEST: "b" * 64, names.TEST_DIGEST: "c" * 64}
    earlier = EarlierRun("trial", digests, load_settings(None, ["home=/here"]), None)
    splits = {"train": "a", "validation": "b", "test": "c"}
    dataset: Any = SimpleNamespace(**{split: SimpleNamespace(digest=mark * 64) for split, mark in splits.items()})
    earlier.check_data(dataset)
    dataset.validation = SimpleNamespace(digest="d" * 64)
    with pytest.raises(ConfigError, match=f"the validation split .* was {'b' * 64}, found {'d' * 64}"):
        earlier.check_data(dataset)


@pytest.mark.parametrize(
    ("before", "now", "same", "line"),
    [
        ([0.5, 0.6], [0.5, 0.6], True, "to the last digit, in epochs 1 to 2\n"),
        ([0.5], [0.5, 0.6], True, "in epochs 1 to 1; that one ended there, this one went on to epoch 2"),
        ([0.5, 0.6], [0.5, 0.6 + 1e-16], False, "epoch 2 was 0.6, is 0.6000000000000001 (processor Z then, Y now"),
        ([], [0.5], None, "had no epoch to compare with"),
    ],
)
def test_the_comparison(
    client: FakeClient,
    capsys: pytest.CaptureFixture[str],
    before: list[float],
    now: list[float],
    same: bool | None,
    line: str,
) -> None:
    client.curves = {"trial": before, "again": now}
    client.runs["again"] = run("again", {"trialgate.processor": "Y"})
    earlier = EarlierRun("trial", {"trialgate.processor": "Z"}, load_settings(None, []), client.runs["trial"])
    assert earlier.compare(client, "parent", "again") is same  # type: ignore[arg-type]
    assert line in capsys.readouterr().err
    assert client.runs["parent"].data.tags[rerun.REPEATS] == "trial"


def test_without_a_config_there_must_be_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        search.main([])
    assert ended.value.code == 2
    assert "--config is needed, unless --from-run names a run to repeat" in capsys.readouterr().err
