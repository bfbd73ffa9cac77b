"""Trials that lose a process in the middle: they go on from their last epoch, and the search does not notice much."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import psutil
import pytest

from configs.schema import Settings
from ray_jobs import progress
from ray_jobs.journal import Journal
from ray_jobs.search import SearchResult, run_search
from serve_app import mlflow_client as names
from serve_app.inference.engine import Engine
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


@pytest.fixture
def home(mlflow_template: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(mlflow_template, folder / "mlflow.db")
    yield folder
    mlflow.set_tracking_uri(None)


def journal_of(settings: Settings, name: str) -> Path:
    return Path(f"{settings.search.storage}/{name}/journal.jsonl")


def curves(settings: Settings, name: str) -> list[list[tuple[int, float, float]]]:
    """(epoch, training loss, validation loss) of every trial, in order of their start."""
    events = Journal(str(journal_of(settings, name))).events
    found: dict[str, list[tuple[int, float, float]]] = {}
    for event in events:
        if event["event"] == "started":
            found.setdefault(event["trial"], [])
        if event["event"] == "epoch":
            metrics = event["metrics"]
            found[event["trial"]].append((metrics["epoch"], metrics["train_loss"], metrics["validation_loss"]))
    return list(found.values())


def has_epoch(journal: Path, epoch: int) -> bool:
    return journal.exists() and f'"epoch": {epoch},' in journal.read_text()


def kill_at(journal: Path, epoch: int, title: str) -> threading.Thread:
    """Kills, once, the process of this session's Ray with this title when the journal has this epoch."""

    def watch() -> None:
        while not has_epoch(journal, epoch):
            threading.Event().wait(0.05)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    process.kill()
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def searched(
    home: Path, name: str, before: Callable[[Settings], Any] = lambda _: None
) -> tuple[Settings, SearchResult]:
    changes = {
        "search__name": name,
        "search__trials": "1",
        "search__scheduler": "none",
        "training__epochs": "6",
        "data__generator": "{texts: 1200, test_texts: 80}",
        "model__dropout": "0.1",
        "search__space": "{training.learning_rate: {type: choice, values: [0.003]}}",
    }
    settings = small_settings(home, **changes)
    before(settings)
    return settings, run_search(settings)


@pytest.fixture(scope="module")
def uninterrupted(
    ray_cluster: RayCluster, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[list[tuple[int, float, float]]]:
    home = tmp_path_factory.mktemp("whole")
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    settings, _ = searched(home, "whole")
    return curves(settings, "whole")


@pytest.mark.slow
@pytest.mark.parametrize("title", ["ray::RayTrainWorker", "ray::ImplicitFunc", "ray::SynchronizationActor"])
def test_a_killed_process_costs_an_epoch_at_most(
    ray_cluster: RayCluster, home: Path, uninterrupted: list[list[tuple[int, float, float]]], title: str
) -> None:
    threads: list[threading.Thread] = []

    def watch(settings: Settings) -> None:
        threads.append(kill_at(journal_of(settings, "killed"), 2, title))

    settings, result = searched(home, "killed", watch)
    threads[0].join(1)
    assert not threads[0].is_alive(), "nothing was killed"
    assert result.counts() == {"finished": 1, "stopped_early": 0, "failed": 0}
    assert curves(settings, "killed") == uninterrupted
    client = names.connect(settings.tracking)
    run = client.get_run(result.best.run_id or "")
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert Engine.load(result.best.model_uri or "").labels == ("negative", "positive")


@pytest.mark.slow
def test_the_losers_models_are_removed(ray_cluster: RayCluster, home: Path) -> None:
    settings = small_settings(home, search__scheduler="none", search__keep_best="1", search__name="kept")
    result = run_search(settings)
    folders = sorted(path.name for path in Path(f"{settings.search.storage}/kept/trials").iterdir())
    assert folders == [result.best.trial_id]
    files = {path.name for path in Path(result.best.model_uri or "").parent.iterdir()}
    assert files == {"model"}
    client = names.connect(settings.tracking)
    for trial in result.trials[1:]:
        tags = client.get_run(trial.run_id or "").data.tags
        assert tags[names.MODEL_URI] == ""
        assert "search.keep_best" in tags[names.MODEL_REMOVED]


@pytest.mark.slow
def test_a_time_budget_ends_with_the_best_so_far(
    ray_cluster: RayCluster, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training__epochs": "400", "search__scheduler": "none", "search__time_budget": "1h"}
    settings = small_settings(home, search__name="short", **changes)

    def clock() -> float:
        return time.monotonic() + 7200 * has_epoch(journal_of(settings, "short"), 2)

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    result = run_search(settings)
    assert {trial.outcome for trial in result.trials} == {"killed"}
    assert Engine.load(result.best.model_uri or "").labels == ("negative", "positive")
    assert "search.time_budget, 3600 s, is used up" in capsys.readouterr().err
    client = names.connect(settings.tracking)
    parent = client.get_run(result.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags[names.BEST_RUN] == result.best.run_id
    states = [
        run.info.status for run in client.search_runs([parent.info.experiment_id]) if names.PARENT_RUN in run.data.tags
    ]
    assert set(states) == {"KILLED"}
    assert json.loads(journal_of(settings, "short").read_text().splitlines()[-1])["outcome"] == "killed"
