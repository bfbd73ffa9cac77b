"""What a search does when trials fail, settings are wrong, or parts of the world are gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import optuna
import pytest
from safetensors.torch import load_file, save_file

from configs.exit_codes import ExitCode
from ray_jobs import pipeline, plan, search
from ray_jobs.journal import Journal
from ray_jobs.search import run_search
from ray_jobs.tokens import tokenise
from serve_app import mlflow_client as names
from tests.conftest import RayCluster
from tests.integration.search.world import SMALL, arguments, small_settings
from tests.tiny import write_tiny_model


def command(home: Path, *more: str, **changes: str) -> list[str]:
    """The arguments of a job's command line for a small search."""
    values = SMALL | {"home": str(home)} | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config", "quickstart.yaml", *(f"--set={text}" for text in arguments(values)), *more]


def with_broken_checkpoint(tmp_path: Path, tracking_uri: str) -> dict[str, str]:
    """The changes that make a search fine-tune a checkpoint whose weights end too early."""
    checkpoint = write_tiny_model(tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    return {
        "model__checkpoint": str(checkpoint),
        "model__architecture": "null",
        "tracking__uri": tracking_uri,
    }


def test_all_trials_fail_for_a_reason_that_is_told(
    ray_cluster: RayCluster,
    tracking_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Token ids that the model has no embedding for: only a trial can find out.
    monkeypatch.setattr(plan, "tokenise", lambda *args: dataclasses.replace(tokenise(*args), vocabulary_size=6))
    changes = {"tracking__uri": tracking_uri, "search__trials": "1", "search__max_failures": "0"}
    assert search.main(command(tmp_path / "home", **changes)) == ExitCode.FAILED
    shown = capsys.readouterr().err
    assert "all 1 trials failed; the first error was: IndexError: index out of range" in shown
    assert "Traceback" not in shown.split("error: all 1 trials")[1]
    ours = [line for line in shown.splitlines() if "IndexError" in line and "pid=" not in line]  # and not a worker's
    assert len(ours) == 2, "once for the trial and once for the search"
    client = names.connect(small_settings(tmp_path / "home", tracking_uri).tracking)
    experiment = client.get_experiment_by_name("quickstart")
    runs = client.search_runs([experiment.experiment_id])
    status = {run.data.tags[names.KIND]: run.info.status for run in runs}
    assert (status["search"], status["trial"]) == ("FAILED", "FAILED")


def overflowing_checkpoint(folder: Path) -> Path:
    """One whose hidden values are so large that attention overflows where dropout makes them 1,000 times larger."""
    weights = write_tiny_model(folder) / "model.safetensors"
    tensors = load_file(weights)
    tensors["distilbert.embeddings.LayerNorm.weight"] *= 1e18
    save_file(tensors, weights, {"format": "pt"})
    return folder


def test_a_trial_that_diverges_fails_and_the_others_go_on(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, studies: list[optuna.Study]
) -> None:
    settings = small_settings(
        tmp_path / "home",
        tracking_uri,
        model__checkpoint=str(overflowing_checkpoint(tmp_path / "checkpoint")),
        model__architecture="null",
        search__space__model__dropout="{type: choice, values: [0.0, 0.999]}",
        search__sampler="random",
        search__seed="2",  # draws 0.999 and then 0
        search__trials="2",
        search__max_concurrent="1",
        search__name="s",
    )
    result = run_search(settings)
    assert result.counts() == {"finished": 1, "stopped_early": 0, "failed": 1}
    assert result.best.parameters["model.dropout"] == 0.0
    assert [trial.state.name for trial in studies[0].trials] == ["FAIL", "COMPLETE"]
    events = Journal(f"{settings.search.storage}/s/journal.jsonl").events
    first = [event for event in events if event["trial"] == events[0]["trial"]]
    assert [event["event"] for event in first] == ["started", "attempt_failed", "started", "ended"]
    assert "TrainingDivergedError: epoch 1: training loss nan" in first[-1]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search__gpus_per_trial": "9"}, "room for 0 such worker"),
        ({"search__cpus_per_trial": "99"}, "room for 0 such worker"),
        ({"search__grace_epochs": "5"}, "search.grace_epochs 5 is above training.epochs"),
        ({"training__warmup_steps": "5000"}, "longer than training"),
        ({"training__epoch": "5"}, "did you mean 'training.epochs'"),
        ({"data__source": "files", "data__train": "[/nowhere/train.csv]"}, "/nowhere/train.csv"),
        ({"model__checkpoint": "/nowhere/model", "model__architecture": "null"}, "/nowhere/model"),
    ],
)
def test_a_misconfigured_run_writes_nothing(
    ray_cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    home = tmp_path / "home"
    assert search.main(command(home, **changes)) == ExitCode.USAGE
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not home.exists()


def test_weights_that_cannot_be_loaded_are_refused_before_any_trial(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = with_broken_checkpoint(tmp_path, tracking_uri)
    assert search.main(command(tmp_path / "home", **changes)) == ExitCode.USAGE
    assert f"model.checkpoint '{tmp_path / 'checkpoint'}' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_disk_without_room_is_refused(
    ray_cluster: RayCluster,
    tracking_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "count_parameters", lambda *_: 10**15)
    assert search.main(command(tmp_path / "home", tracking__uri=tracking_uri)) == ExitCode.UNREACHABLE
    assert "make room" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    settings = small_settings(tmp_path / "home")
    settings.search.space = {}
    with pytest.raises(ValueError, match=r"search\.space is empty"):
        run_search(settings)


def test_mlflow_that_is_not_there(ray_cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path / "home", tracking__uri="http://127.0.0.1:9")
    assert pipeline.main(arguments) == ExitCode.UNREACHABLE
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_storage_that_cannot_be_written(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("")
    changes = {"search__storage": f"{blocker}/searches", "tracking__uri": tracking_uri}
    assert search.main(command(tmp_path / "home", **changes)) == ExitCode.UNREACHABLE
    assert "search.storage" in capsys.readouterr().err


def test_resume_of_what_was_never_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(command(tmp_path / "home", "--resume", "no-such-search")) == ExitCode.USAGE
    assert "no-such-search" in capsys.readouterr().err


def test_one_json_document_on_standard_output(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    changes = {"search__trials": "1", "training__epochs": "1", "gate__minimum_f1": "1.0", "tracking__uri": tracking_uri}
    arguments = command(tmp_path / "home", "--json", "--json-file", str(out), **changes)
    assert pipeline.main(arguments) == ExitCode.BLOCKED
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["decision"] == "blocked"
    assert printed["model_version"] is None
    assert printed["trials"] == {"finished": 1, "stopped_early": 0, "failed": 0}
    client = names.connect(small_settings(tmp_path / "home", tracking_uri).tracking)
    assert not client.search_registered_models()
