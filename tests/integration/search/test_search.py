"""A whole search on real Ray, Tune, Train and MLflow, and the gate on what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from configs.schema import Settings
from configs.search import SearchConfig
from gate import promotion
from ray_jobs.search import SearchResult, main, run_search
from serve_app import mlflow_client as names
from serve_app.inference.engine import Engine
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


@dataclass
class Searched:
    """A finished search, with what MLflow has of it."""

    settings: Settings
    result: SearchResult
    client: MlflowClient
    parent: Run
    trials: list[Run]


@pytest.fixture(scope="module")
def searched(
    ray_cluster: RayCluster, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searched]:
    home = tmp_path_factory.mktemp("search")
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    settings = small_settings(home, search__scheduler="none")
    result = run_search(settings)
    client = names.connect(settings.tracking)
    parent = client.get_run(result.parent_run_id)
    trials = client.search_runs(
        [parent.info.experiment_id], f"tags.`{names.PARENT_RUN}` = '{parent.info.run_id}'", order_by=["start_time"]
    )
    yield Searched(settings, result, client, parent, list(trials))
    mlflow.set_tracking_uri(None)


def test_every_trial_has_one_run_in_its_true_state(searched: Searched) -> None:
    assert len(searched.trials) == len(searched.result.trials) == 3
    assert {run.info.status for run in searched.trials} == {"FINISHED"}
    assert searched.parent.info.status == "FINISHED"
    by_id = {run.data.tags[names.TRIAL_ID]: run for run in searched.trials}
    for record in searched.result.trials:
        run = by_id[record.trial_id]
        assert run.data.tags[names.OUTCOME] == record.outcome == "finished"
        assert {key: float(value) for key, value in run.data.params.items()} == pytest.approx(record.parameters)
        assert run.data.metrics["best_validation_f1"] == pytest.approx(record.f1)


def test_epochs_are_steps(searched: Searched) -> None:
    for run in searched.trials:
        for metric in ("train_loss", "validation_loss", "validation_f1"):
            history = searched.client.get_metric_history(run.info.run_id, metric)
            assert [point.step for point in history] == [1, 2], metric


def test_parent_names_the_best_trial_and_what_it_takes_to_repeat_it(searched: Searched) -> None:
    tags, best = searched.parent.data.tags, searched.result.best
    assert tags[names.BEST_RUN] == best.run_id
    assert best.f1 == max(record.f1 or 0.0 for record in searched.result.trials)
    for digest in (names.TEST_DIGEST, "trialgate.train_digest", "trialgate.validation_digest"):
        assert len(tags[digest]) == 64
    assert tags["trialgate.seed"] == "42"
    assert tags[names.F1_DEFINITION] == "binary:positive"
    assert "trialgate.git_revision" in tags
    settings = mlflow.artifacts.load_dict(f"runs:/{searched.parent.info.run_id}/{names.SETTINGS_FILE}")
    assert Settings.model_validate(settings) == searched.settings


def test_the_best_model_is_whole_and_only_the_best_epoch_is_kept(searched: Searched) -> None:
    for record in searched.result.trials:
        assert record.model_uri is not None
        folder = Path(record.model_uri)
        assert Engine.load(folder).labels == ("negative", "positive")
        assert [path.name for path in folder.parent.parent.glob("epoch-*")] == [f"epoch-{record.best_epoch}"]


def test_the_registry_and_the_test_split_are_untouched(searched: Searched) -> None:
    assert not searched.client.search_registered_models()
    assert not [key for run in searched.trials for key in run.data.metrics if key.startswith("test_")]


def test_the_test_split_is_frozen_once(searched: Searched) -> None:
    datasets = searched.client.search_runs(
        [searched.parent.info.experiment_id], f"tags.`{names.KIND}` = '{names.KIND_DATASET}'"
    )
    assert len(datasets) == 1
    uri = searched.parent.data.tags[names.TEST_URI]
    assert uri == f"runs:/{datasets[0].info.run_id}/{names.TEST_FILE}"


def test_the_journal_has_what_mlflow_has(searched: Searched) -> None:
    journal = Path(f"{searched.settings.search.storage}/{searched.result.name}/journal.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [event["event"] for event in events].count("started") == 3
    assert [event["event"] for event in events].count("epoch") == 6
    assert [event["event"] for event in events].count("ended") == 3


def test_the_search_leaves_a_report(searched: Searched, tmp_path: Path) -> None:
    parent, best = searched.parent.info.run_id, searched.result.best
    local = Path(f"{searched.settings.search.storage}/{searched.result.name}/report.html")
    logged = mlflow.artifacts.download_artifacts(f"runs:/{parent}/report.html", dst_path=str(tmp_path))
    assert local.read_bytes() == Path(logged).read_bytes()
    page = local.read_text(encoding="utf-8")
    assert page.count("plotly-graph-div") >= 4
    assert f"{best.f1:.4f}" in page
    assert f"gate check --run-id {best.run_id}" in page
    assert f"Winner: run [{best.run_id}]" in searched.parent.data.tags["mlflow.note.content"]
    marked = [run.info.run_id for run in searched.trials if run.data.tags.get("trialgate.best") == "true"]
    assert marked == [best.run_id]


def test_trials_tell_what_they_used_and_on_what(searched: Searched) -> None:
    for run in searched.trials:
        for metric in ("system/peak_memory_mb", "system/cpu_seconds", "system/cpu_cores"):
            history = searched.client.get_metric_history(run.info.run_id, metric)
            assert [point.step for point in history] == [1, 2]
            assert all(point.value > 0 for point in history), metric
        assert "1 threads" in run.data.tags["trialgate.processor"]
        assert run.data.tags["trialgate.precision"] == "fp32"


def test_a_trial_trained_again_gives_the_same_f1_to_the_last_digit(
    searched: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    worst = searched.result.trials[-1]
    assert worst.run_id is not None
    assert main(["--from-run", worst.run_id, "--set", f"home={searched.settings.home}", "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert f"the same validation F1 as run {worst.run_id}, to the last digit, in epochs 1 to 2" in output.err
    assert "will differ" not in output.err
    assert (found["repeats"], found["same"]) == (worst.run_id, True)
    assert found["best_validation_f1"] == worst.f1
    assert found["parameters"] == worst.parameters
    for metric in ("validation_f1", "validation_loss", "train_loss"):
        curves = [
            [(point.step, point.value) for point in searched.client.get_metric_history(run_id, metric)]
            for run_id in (worst.run_id, found["run_id"])
        ]
        assert curves[0] == curves[1], metric


def test_the_gate_takes_it_from_here(searched: Searched) -> None:
    decision = promotion.check(searched.client, run_id=searched.parent.info.run_id)
    assert decision.decision == "would_promote"
    assert decision.run_id == searched.result.best.run_id
    assert not searched.client.search_registered_models()
    promoted = promotion.promote(searched.client, run_id=searched.parent.info.run_id)
    assert (promoted.decision, promoted.model_version) == ("promoted", "1")
    assert promoted.f1 == decision.f1


def test_a_second_search_begins_with_the_firsts_results_and_weighs_size(
    searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = searched.settings.model_copy(deep=True)
    settings.training.epochs = 1
    settings.search = SearchConfig.model_validate(
        settings.search.model_dump()
        | {"trials": 2, "objectives": ["f1 max", "parameters min"], "max_f1_drop": 1.0}
        | {"warm_start": {"parent_run": searched.parent.info.run_id}}
    )
    result = run_search(settings)
    assert "warm start: 3 earlier trials\n" in capsys.readouterr().err
    assert len(result.trials) == 2
    sizes = {record.metrics["parameters"] for record in result.trials}
    assert sizes == {searched.trials[0].data.metrics["parameters"]}, "the architecture is not searched"
    assert result.front is not None
    assert f"to the gate: trial {result.best.trial_id}: parameters" in result.front
    kept = searched.client.download_artifacts(result.parent_run_id, "front.txt", str(tmp_path))
    assert Path(kept).read_text() == result.front
