"""What is wrong with a candidate, or was changed in MLflow by hand: each ends in its exit code and a clear message."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.exit_codes import ExitCode
from gate import audit, registry
from gate.decision import Decision
from gate.score_store import SCORE_FILE
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.test_interruptions import DEAD
from tests.integration.gate.world import World

NAME = "trialgate-classifier"


def _with_nan(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _with_file(source: Path, folder: Path, name: str, content: bytes) -> Path:
    shutil.copytree(source, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def _with_remote_code(source: Path, folder: Path, name: str) -> Path:
    shutil.copytree(source, folder)
    file = folder / name
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "auto_map": {"AutoModel": "somebody/model--modeling.Model"}}))
    return folder


def _assert_refused(world: World, gate: Gate, run_id: str, words: str) -> None:
    """Blocked, also by force, with these words; recorded, and nothing registered."""
    for force in ([], ["--force", "--reason", "r"]):
        code, decision = gate("promote", "--run-id", run_id, *force)
        assert (code, decision["decision"]) == (ExitCode.BLOCKED, "blocked"), words
        assert words in decision["reason"]
    assert world.client.search_registered_models() == []
    assert world.client.search_logged_models([world.experiment_id]) == []


@ON_SQLITE_ALONE
def test_candidate_that_proves_nothing(world: World, models: dict[str, Path], gate: Gate, tmp_path: Path) -> None:
    """The run's own metrics count for nothing, so one without any is as good as another."""
    _assert_refused(world, gate, world.trial(_with_nan(models["good"], tmp_path / "nan")), "not finite")
    undigested = world.trial(models["good"], **{names.TEST_DIGEST: ""})
    world.client.log_metric(undigested, "test_f1", 1.0)
    _assert_refused(world, gate, undigested, "has no test digest")
    without = world.trial(None)
    world.client.log_metric(without, "test_f1", 1.0)
    _assert_refused(world, gate, without, "no saved model")
    assert world.client.get_run(world.trial(models["good"])).data.metrics == {}
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0


def _forge(world: World, run_id: str, f1: float) -> None:
    """Lets the score that the run keeps say another F1 than its predictions."""
    (kept,) = world.client.list_artifacts(run_id, "scores")
    file = Path(world.client.download_artifacts(run_id, f"{kept.path}/{SCORE_FILE}"))
    world.client.log_text(run_id, json.dumps({**json.loads(file.read_bytes()), "f1": f1}), f"{kept.path}/{SCORE_FILE}")


def test_stored_score_that_its_predictions_do_not_bear_out(
    world: World, models: dict[str, Path], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = world.trial(models["good"]), world.trial(models["bad"])
    true = gate("check", "--run-id", bad)[1]["f1"]
    _forge(world, bad, 0.99)
    code, decision = gate("promote", "--run-id", bad)
    assert (code, decision["f1"]) == (ExitCode.BLOCKED, true)
    assert "contradicts the predictions" in caplog.text
    caplog.clear()
    assert gate("check", "--run-id", bad)[1]["f1"] == true  # what was computed is stored in the forged one's place
    assert "contradicts" not in caplog.text

    assert gate("promote", "--run-id", good)[0] == 0
    _forge(world, good, 0.1)  # production is no easier to beat by it
    code, decision = gate("promote", "--run-id", bad)
    assert (code, decision["baseline_f1"]) == (ExitCode.BLOCKED, 1.0)
    assert "contradicts the predictions" in caplog.text


@ON_SQLITE_ALONE
def test_code_in_a_model_folder(world: World, models: dict[str, Path], gate: Gate, tmp_path: Path) -> None:
    good = models["good"]
    folders = {
        "pytorch_model.bin may run code": _with_file(good, tmp_path / "1", "pytorch_model.bin", b"weights"),
        "modeling.py may run code": _with_file(good, tmp_path / "2", "code/modeling.py", b"print('mine')"),
        "notes.txt is a pickle": _with_file(good, tmp_path / "3", "notes.txt", b"\x80\x04\x95"),
        "more.data is a pickle or an archive": _with_file(good, tmp_path / "4", "more.data", b"PK\x03\x04"),
        "config.json names remote code": _with_remote_code(good, tmp_path / "5", "config.json"),
        "tokenizer_config.json names remote code": _with_remote_code(good, tmp_path / "6", "tokenizer_config.json"),
    }
    for words, folder in folders.items():
        _assert_refused(world, gate, world.trial(folder), words)


@pytest.mark.parametrize("by_hand", ["version deleted", "alias deleted"])
def test_production_that_was_taken_away_by_hand(
    world: World, models: dict[str, Path], gate: Gate, by_hand: str
) -> None:
    for model in ("good", "good-too"):
        assert gate("promote", "--run-id", world.trial(models[model]))[0] == 0
    if by_hand == "version deleted":
        world.client.delete_model_version(NAME, "2")
    else:
        world.client.delete_registered_model_alias(NAME, "production")
    before = registry.state(world.client, NAME)
    bad = world.trial(models["bad"])
    for command in ("check", "promote"):
        code, decision = gate(command, "--run-id", bad, "--set", "gate.minimum_f1=0")
        assert code == ExitCode.BLOCKED
        assert "production of trialgate-classifier was version 2" in decision["reason"]
        assert "outside the gate" in decision["reason"]
        assert "python -m gate rollback" in decision["reason"]
    assert registry.state(world.client, NAME) == before
    code, decision = gate("rollback", *(["--to", "1"] if by_hand == "alias deleted" else []))
    assert (code, decision["production_version"]) == (0, "1")


def test_model_that_was_deleted_as_a_whole_starts_anew(world: World, models: dict[str, Path], gate: Gate) -> None:
    assert gate("promote", "--run-id", world.trial(models["good"]))[0] == 0
    world.client.delete_registered_model(NAME)
    code, decision = gate("promote", "--run-id", world.trial(models["good-too"]))
    assert (code, decision["decision"], decision["model_version"]) == (0, "promoted", "1")


@ON_SQLITE_ALONE
def test_alias_that_points_nowhere(world: World, models: dict[str, Path], gate: Gate, tmp_path: Path) -> None:
    """MLflow itself deletes an alias with its version; a damaged database may not have."""
    for model in ("good", "good-too"):
        assert gate("promote", "--run-id", world.trial(models[model]))[0] == 0
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table in ("model_version_tags", "model_versions"):
            database.execute(f"DELETE FROM {table} WHERE name = ? AND version = 2", (NAME,))
    database.close()
    candidate = world.trial(models["good"])
    commands: list[list[Any]] = [["check", "--run-id", candidate], ["promote", "--run-id", candidate], ["status"]]
    for command in commands:
        code, document = gate(*command)
        assert code == ExitCode.USAGE, command
        assert "points at version 2, which does not exist" in document["error"]
    interrupted = audit.begin(world.client, Decision(decision="promoted", reason="r", action="promote",
                                                     model_name=NAME, model_version="2"))  # fmt: skip
    assert interrupted.decision_id is not None
    world.client.set_tag(interrupted.decision_id, names.OWNER, DEAD)
    code, decision = gate("rollback")
    assert (code, decision["production_version"]) == (0, "1")
    assert gate("status")[1]["production_version"] == "1"
    assert [entry["decision"] for entry in gate("history")[1]["decisions"][:2]] == ["rolled_back", audit.UNDONE]
