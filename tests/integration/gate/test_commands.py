"""The gate's commands on a real MLflow with real, tiny models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gate import audit, promotion, registry
from gate.__main__ import main
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.world import TEXTS, World

NAME = "trialgate-classifier"


def _aliases(world: World) -> dict[str, str]:
    model = registry.find_model(world.client, NAME)
    return {} if model is None else {alias: str(version) for alias, version in model.aliases.items()}


def _decisions(gate: Gate) -> list[str]:
    return [entry["decision"] for entry in gate("history")[1]["decisions"]]


def test_first_candidate_below_the_minimum_is_blocked_and_nothing_registered(
    world: World, models: dict[str, Path], gate: Gate
) -> None:
    run_id = world.trial(models["bad"])
    code, decision = gate("promote", "--run-id", run_id)
    assert code == 3
    assert decision["decision"] == "blocked"
    assert decision["baseline_f1"] is None
    assert decision["model_version"] is None
    assert "minimum F1 0.85" in decision["reason"]
    assert world.client.search_registered_models() == []
    assert world.client.search_logged_models([world.experiment_id]) == []
    tags = world.client.get_run(run_id).data.tags
    assert tags[names.DECISION] == "blocked"
    assert "minimum F1" in tags["trialgate.decision_reason"]
    assert _decisions(gate) == ["blocked"]
    assert gate("status")[1]["production"] is None
    assert gate("promote", "--run-id", run_id, "--blocked-ok")[0] == 0
    assert gate("check", "--run-id", run_id, "--set", "gate.minimum_f1=0.1")[0] == 0


def test_check_stores_the_score_and_changes_nothing_else(world: World, models: dict[str, Path], gate: Gate) -> None:
    run_id = world.trial(models["good"])
    code, decision = gate("check", "--run-id", run_id)
    assert code == 0
    assert (decision["decision"], decision["f1"]) == ("would_promote", 1.0)
    run = world.client.get_run(run_id)
    assert names.DECISION not in run.data.tags
    assert run.data.metrics["test_f1"] == 1.0
    assert run.data.metrics["test_texts"] == len(TEXTS)
    files = {file.path for file in world.client.list_artifacts(run_id)}
    assert {"confusion_matrix.png", "precision_recall.png", "scores"} <= files
    assert world.client.search_registered_models() == []
    assert world.client.get_experiment_by_name(audit.EXPERIMENT) is None
    again = gate("check", "--run-id", run_id)[1]
    assert again["evidence"]["candidate"] == decision["evidence"]["candidate"]  # with its speed: the stored one
    assert len(world.client.list_artifacts(run_id, "scores")) == 1


def test_promotion_of_a_searchs_best_trial(world: World, models: dict[str, Path], gate: Gate) -> None:
    run_id = world.trial(models["good"])
    world.client.set_tag(world.parent, names.BEST_RUN, run_id)
    code, decision = gate("promote", "--run-id", world.parent)
    assert code == 0
    assert decision["decision"] == "promoted"
    assert (decision["run_id"], decision["parent_run_id"]) == (run_id, world.parent)
    assert (decision["f1"], decision["baseline_f1"], decision["model_version"]) == (1.0, None, "1")
    assert _aliases(world) == {"production": "1"}
    assert world.client.get_run(world.parent).data.tags[names.DECISION] == "promoted"
    version = world.client.get_model_version(NAME, "1")
    assert version.run_id == run_id
    assert version.tags[names.VERSION_F1] == "1.0"
    assert version.tags[names.TEST_DIGEST] == world.test_digest
    assert version.tags[names.DECISION_ID] == decision["decision_id"]
    assert version.tags[names.PRODUCTION_SINCE]
    record = world.client.get_run(decision["decision_id"])
    assert record.info.status == "FINISHED"
    path = world.client.download_artifacts(decision["decision_id"], audit.DECISION_FILE)
    assert json.loads(Path(path).read_text()) == decision
    # once more: nothing changes, and it says so
    code, again = gate("promote", "--run-id", run_id)
    assert code == 0
    assert again["model_version"] == "1"
    assert not again["changed"]
    assert "already production" in again["reason"]
    assert len(registry.versions(world.client, NAME)) == 1
    assert _decisions(gate) == ["promoted"]


@ON_SQLITE_ALONE
def test_forcing_what_is_production_says_that_it_was_forced_and_replays(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path
) -> None:
    run_id, file = world.trial(models["good"]), str(tmp_path / "decision.json")
    gate("promote", "--run-id", run_id)
    code, decision = gate("promote", "--run-id", run_id, "--set", "gate.require_significant=true", "--force",
                          "--reason", "once more", "--json-file", file)  # fmt: skip
    assert (code, decision["decision"], decision["changed"]) == (0, "forced", False)
    assert decision["reason"].startswith("version 1 is already production; forced against: not significantly better")
    assert gate("replay", file)[0] == 0
    assert _decisions(gate) == ["promoted"]


@ON_SQLITE_ALONE
def test_production_decides_from_then_on(world: World, models: dict[str, Path], gate: Gate) -> None:
    good, bad, equal = (world.trial(models[name]) for name in ("good", "bad", "good-too"))
    assert gate("promote", "--run-id", good)[0] == 0
    code, blocked = gate("promote", "--run-id", bad, "--set", "gate.minimum_f1=0")
    assert code == 3
    assert blocked["baseline_f1"] == 1.0
    assert blocked["f1"] < 1.0
    assert "below production's F1" in blocked["reason"]
    assert _aliases(world) == {"production": "1"}
    code, decision = gate("promote", "--run-id", equal)  # equality passes
    assert code == 0
    assert "equals production's F1" in decision["reason"]
    assert _aliases(world) == {"production": "2", "previous": "1"}
    assert _decisions(gate) == ["promoted", "blocked", "promoted"]


@ON_SQLITE_ALONE
def test_force_is_recorded_and_needs_a_reason(world: World, models: dict[str, Path], gate: Gate) -> None:
    good, bad = world.trial(models["good"]), world.trial(models["bad"])
    gate("promote", "--run-id", good)
    assert gate("promote", "--run-id", bad, "--force")[0] == 2
    code, decision = gate("promote", "--run-id", bad, "--force", "--reason", "a test of the pager")
    assert code == 0
    assert decision["decision"] == "forced"
    assert decision["forced_reason"] == "a test of the pager"
    assert [check["name"] for check in decision["checks"] if check["forced"]] == ["f1_rule"]
    newest = gate("history")[1]["decisions"][0]
    assert (newest["decision"], newest["forced_reason"]) == ("forced", "a test of the pager")
    assert newest["decided_by"]


def test_rollback_marks_what_it_leaves_and_only_goes_where_production_was(
    world: World, models: dict[str, Path], gate: Gate
) -> None:
    good, bad, third = (world.trial(models[name]) for name in ("good", "bad", "good-too"))
    gate("promote", "--run-id", good)
    assert gate("rollback")[0] == 3  # nothing to go back to
    gate("promote", "--run-id", bad, "--force", "--reason", "r")
    gate("promote", "--run-id", third)
    assert _aliases(world) == {"production": "3", "previous": "2"}
    code, refused = gate("rollback", "--only-from", "2")  # as a deployment does, whose version somebody has replaced
    assert (code, refused["production_version"]) == (3, "3")
    assert "version 3 is production, and only version 2 was to be left" in refused["reason"]
    code, decision = gate("rollback", "--reason", "pager", "--only-from", "3")
    assert code == 0
    assert decision["decision"] == "rolled_back"
    assert (decision["model_version"], decision["baseline_version"]) == ("2", "3")
    assert _aliases(world) == {"production": "2", "previous": "1"}
    assert names.ROLLED_BACK in world.client.get_model_version(NAME, "3").tags
    code, refused = gate("rollback", "--to", "3")
    assert code == 3
    assert "was itself rolled back" in refused["reason"]
    assert gate("rollback", "--to", "2")[1]["changed"] is False
    assert gate("rollback", "--to", "7")[0] == 2
    # the version that was left needs force, although it passes the rule
    code, blocked = gate("promote", "--version", "3")
    assert code == 3
    assert "--force" in blocked["reason"]
    assert {check["name"]: check["passed"] for check in blocked["checks"]}["f1_rule"] is True
    assert gate("promote", "--run-id", third)[0] == 3  # by its run as well: the weights are the same
    code, forced = gate("promote", "--run-id", third, "--force", "--reason", "it was not the model")
    assert code == 0
    assert (forced["decision"], forced["model_version"]) == ("forced", "3")
    assert _aliases(world) == {"production": "3", "previous": "2"}  # production again, so no longer rolled back
    assert gate("rollback", "--to", "1")[0] == 0
    assert _aliases(world) == {"production": "1", "previous": "2"}
    assert len(registry.versions(world.client, NAME)) == 3


@ON_SQLITE_ALONE
def test_version_that_never_was_in_production(world: World, models: dict[str, Path], gate: Gate) -> None:
    good, other = world.trial(models["good"]), world.trial(models["good-too"])
    gate("promote", "--run-id", good)
    version = registry.register(
        world.client, NAME, models["good-too"], run_id=other, experiment_id=world.experiment_id,
        decision_id="by hand", tags={},
    )  # fmt: skip
    code, refused = gate("rollback", "--to", str(version.version))
    assert code == 3
    assert "never in production" in refused["reason"]
    code, decision = gate("promote", "--version", str(version.version))
    assert code == 0
    assert decision["run_id"] == other
    assert _aliases(world) == {"production": str(version.version), "previous": "1"}


@ON_SQLITE_ALONE
def test_production_on_another_test_split_is_scored_again(world: World, models: dict[str, Path], gate: Gate) -> None:
    gate("promote", "--run-id", world.trial(models["good"]))
    texts = [f"the {word} was good" for word in ("movie", "book")] + ["awful plot", "boring cast"]
    digest, uri = world.freeze(texts, [0, 0, 1, 1])  # where the rule model is always wrong
    other = world.trial(models["good-too"], **{names.TEST_DIGEST: digest, names.TEST_URI: uri})
    code, decision = gate("promote", "--run-id", other)
    assert code == 0
    assert (decision["f1"], decision["baseline_f1"]) == (0.0, 0.0)
    assert decision["evidence"]["production"]["key"]["test_digest"] == digest


def test_production_that_cannot_be_scored_blocks_until_forced(
    world: World, models: dict[str, Path], gate: Gate, artifacts: Path
) -> None:
    digest, uri = world.freeze(["good", "bad", "fine"], [0, 1, 2], ("a", "b", "c"))
    classes = world.trial(models["other-labels"], **{names.TEST_DIGEST: digest, names.TEST_URI: uri})
    assert gate("promote", "--run-id", classes, "--set", "gate.minimum_f1=0")[0] == 0
    good = world.trial(models["good"])
    code, blocked = gate("promote", "--run-id", good)
    assert code == 3
    assert blocked["f1"] == 1.0
    assert blocked["baseline_f1"] is None
    for way in ("rollback", "model_name", "--force"):
        assert way in blocked["reason"]
    assert gate("promote", "--run-id", good, "--set", "tracking.model_name=another")[0] == 0
    code, forced = gate("promote", "--run-id", good, "--force", "--reason", "new classes")
    assert (code, forced["decision"], forced["model_version"]) == (0, "forced", "2")
    # its artifact is gone
    for folder in artifacts.rglob("models"):
        shutil.rmtree(folder)
    code, blocked = gate("promote", "--run-id", world.trial(models["good-too"]))
    assert code == 3
    assert "production cannot be scored" in blocked["reason"]
    code, forced = gate("promote", "--run-id", good, "--force", "--reason", "the artifact is gone")
    assert (code, forced["model_version"]) == (0, "3")  # a new version with an artifact, not the old one without
    assert mlflow.pyfunc.load_model(f"models:/{NAME}@production").predict(["good"])["label"].tolist() == ["positive"]


@ON_SQLITE_ALONE
def test_candidate_without_a_score_is_blocked_even_by_force(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path
) -> None:
    broken = shutil.copytree(models["good"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    cases = {
        "does not load": world.trial(broken),
        "cannot be read": world.trial(tmp_path / "nowhere"),
        "no saved model": world.trial(None),
        "no frozen test split": world.trial(models["good"], **{names.TEST_URI: ""}),
        "was changed": world.trial(models["good"], **{names.TEST_DIGEST: "0" * 64}),
        "labels": world.trial(models["other-labels"]),
        "two definitions of F1": world.trial(models["good"], **{names.F1_DEFINITION: "macro"}),
    }
    for words, run_id in cases.items():
        code, decision = gate("promote", "--run-id", run_id, "--force", "--reason", "r")
        assert code == 3, words
        assert decision["f1"] is None
        assert words in decision["reason"]
        assert world.client.get_run(run_id).data.tags[names.DECISION] == "blocked"
    assert world.client.search_registered_models() == []
    assert _decisions(gate) == ["blocked"] * len(cases)


def test_production_whose_run_is_gone_is_scored_all_the_same(world: World, models: dict[str, Path], gate: Gate) -> None:
    good = world.trial(models["good"])
    gate("promote", "--run-id", good)
    world.client.delete_run(good)
    code, decision = gate("promote", "--run-id", world.trial(models["good-too"]))
    assert code == 0
    assert decision["baseline_f1"] == 1.0
    assert gate("promote", "--version", "1")[0] == 0  # by what the version's own tags say


def test_things_that_do_not_exist_are_named(
    world: World, models: dict[str, Path], gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = world.client.create_run(world.experiment_id).info.run_id
    deleted = world.trial(models["good"])
    world.client.delete_run(deleted)
    commands = {
        ("check", "--run-id", "0" * 32): "0" * 32,
        ("promote", "--run-id", "../nonsense"): "../nonsense",
        ("promote", "--run-id", plain): "neither a trial nor a search",
        ("promote", "--run-id", deleted): "is deleted",
        ("promote", "--run-id", world.parent): "no best trial",
        ("promote", "--version", "1"): "version '1'",
        ("status", "--model-name", "nobody"): "nobody",
        ("rollback", "--model-name", "nobody"): "nobody",
        ("status", "--model-name", "a/b"): "model_name",
    }
    for command, words in commands.items():
        code, document = gate(*command)
        assert code == 2, command
        assert words in document["error"]
    assert gate("rollback")[0] == 3
    assert gate("status")[1]["decisions"] == []
    gate("promote", "--run-id", world.trial(models["good"]), "--set", "tracking.model_name=mine")
    assert gate("status")[1]["model_name"] == "mine"  # the only one there is
    code, document = gate("status", "--model-name", "yours")
    assert code == 2
    assert "mine" in document["error"]


@ON_SQLITE_ALONE
def test_settings_of_the_search_apply_and_can_be_overridden(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings.model_dump(mode="json")
    settings["gate"]["minimum_f1"], settings["tracking"]["model_name"] = 0.0, "of-the-search"
    world.client.log_text(world.parent, json.dumps(settings), names.SETTINGS_FILE)
    bad = world.trial(models["bad"])
    code, decision = gate("check", "--run-id", bad)
    assert (code, decision["model_name"], decision["minimum_f1"]) == (0, "of-the-search", 0.0)
    config = tmp_path / "gate.yaml"
    config.write_text("gate: {minimum_f1: 0.99}")
    code, decision = gate("check", "--run-id", bad, "--config", str(config))
    assert (code, decision["model_name"], decision["minimum_f1"]) == (3, "of-the-search", 0.99)
    monkeypatch.setenv("TRIALGATE_GATE__MINIMUM_F1", "0.9")
    assert gate("check", "--run-id", bad)[1]["minimum_f1"] == 0.9
    assert gate("check", "--run-id", bad, "--set", "gate.minimum_f1=0.2")[1]["minimum_f1"] == 0.2
    assert gate("check", "--run-id", bad, "--model-name", "mine")[1]["model_name"] == "mine"


def test_registered_version_opens_everywhere_and_holds_no_pickle(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path
) -> None:
    gate("promote", "--run-id", world.trial(models["good"]))
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@production")
    for texts in (["it was good", "it was bad"], pd.DataFrame({"text": ["it was good", "it was bad"]})):
        answers = loaded.predict(texts)
        assert answers["label"].tolist() == ["positive", "negative"]
        assert answers["score"].tolist() == [row[label] for row, label in zip(
            answers["probabilities"], answers["label"], strict=True)]  # fmt: skip
        assert all(set(row) == {"negative", "positive"} for row in answers["probabilities"])
    with pytest.raises(ValueError, match="expected str"):
        loaded.predict([None])
    assert loaded.metadata.signature.outputs.input_names() == ["label", "score", "probabilities"]
    root = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path / "copy")))
    requirements = (root / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    for file in root.rglob("*"):
        if file.is_file():
            assert file.suffix in {".json", ".safetensors", ".txt", ".yaml", ""}, file
            assert not file.read_bytes().startswith((b"\x80", b"PK")), file
    folder = next(root.rglob("trialgate.json")).parent
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**tokenizer(["it was good", "it was bad"], return_tensors="pt")).logits
    assert [model.config.id2label[int(i)] for i in logits.argmax(-1)] == ["positive", "negative"]


@ON_SQLITE_ALONE
def test_as_a_program(world: World, models: dict[str, Path], tmp_path: Path) -> None:
    """One real process: standard output is the document alone, the file is the same, the exit code is the gate's."""
    run_id = world.trial(models["bad"])
    target = tmp_path / "decision.json"
    command = [sys.executable, "-m", "gate", "check", "--run-id", run_id, "--json", "--json-file", target.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert document["decision"] == "blocked"
    assert json.loads(target.read_text()) == document
    assert "Traceback" not in done.stderr


@ON_SQLITE_ALONE
def test_for_people(world: World, models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_id = world.trial(models["good"])
    assert main(["promote", "--run-id", run_id]) == 0
    assert f"version 1 of {NAME} is production" in capsys.readouterr().out
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "version 1, F1 1.0000" in out
    assert main(["history"]) == 0
    assert "promoted" in capsys.readouterr().out


@ON_SQLITE_ALONE
def test_python_interface(world: World, models: dict[str, Path]) -> None:
    good = world.trial(models["good"])
    assert promotion.check(world.client, run_id=good).exit_code == 0
    decision = promotion.promote(world.client, world.settings, good)
    assert (decision.decision, decision.model_version) == ("promoted", "1")
    assert promotion.status(world.client, NAME)["production_version"] == "1"
    assert promotion.rollback(world.client, NAME).exit_code == 3
