"""What a decision leaves for people to look at: pages, picture and model card, on the runs and on the version."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from gate import attachments, audit, promotion
from gate.decision import Decision
from gate.replay import replay
from serve_app import mlflow_client as names
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.world import World

NAME = "trialgate-classifier"


@pytest.fixture
def pictures() -> None:
    """The real ones."""


def _files(world: World, run_id: str, folder: str | None = None) -> set[str]:
    return {Path(file.path).name for file in world.client.list_artifacts(run_id, folder)}


def _read(world: World, run_id: str, file: str, into: Path) -> bytes:
    into.mkdir(exist_ok=True)
    return Path(world.client.download_artifacts(run_id, file, str(into))).read_bytes()


def test_a_promotion_leaves_pages_and_a_card(world: World, models: dict[str, Path], gate: Gate, tmp_path: Path) -> None:
    """With all that a decision has by default: its behavioural tests too."""
    world.set_gate(behaviour_suites=["sentiment"])
    run_id = world.trial(models["good"])
    decision = gate("promote", "--run-id", run_id)[1]
    record = decision["decision_id"]
    assert _files(world, record) == {
        "intent.json",
        "decision.json",
        "decision.html",
        "model_card.md",
        "model_card.html",
    }
    assert "is in production" in _read(world, record, "decision.html", tmp_path / "a").decode()
    assert _files(world, run_id, f"decisions/{record}") == {"decision.json", "decision.html"}
    for run, file in ((record, "decision.json"), (run_id, f"decisions/{record}/decision.json")):
        stored = Decision.model_validate_json(_read(world, run, file, tmp_path / run))
        assert stored.model_dump(mode="json") == decision
        assert replay(stored).agrees
    version = world.client.get_model_version(NAME, "1")
    card = _read(world, record, "model_card.md", tmp_path / "b").decode()
    assert version.description == card or version.description.endswith("prints it.\n")
    assert version.tags[names.DECISION] == "promoted"
    assert version.tags[names.DECISION_ID] == record
    assert version.tags[names.DECIDED_AT] == decision["decided_at"]
    assert version.tags[names.DECIDED_BY] == decision["decided_by"]
    assert names.FORCED_REASON not in version.tags
    assert "the first 64 tokens" in card


@ON_SQLITE_ALONE
def test_blocked_forced_and_rolled_back_are_told(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path
) -> None:
    gate("promote", "--run-id", world.trial(models["good"]))
    bad = world.trial(models["bad"])
    blocked = gate("promote", "--run-id", bad)[1]["decision_id"]
    assert _files(world, blocked) == {"intent.json", "decision.json", "decision.html", "comparison.png"}
    assert _read(world, blocked, "comparison.png", tmp_path / "a").startswith(b"\x89PNG")
    forced = gate("promote", "--run-id", bad, "--force", "--reason", "a <leak>")[1]["decision_id"]
    assert {"comparison.png", "model_card.md"} < _files(world, forced)
    assert _files(world, bad, "decisions") == {blocked, forced}
    version = world.client.get_model_version(NAME, "2")
    assert version.tags[names.FORCED_REASON] == "a <leak>"
    assert "against the gate's verdict" in version.description
    back = gate("rollback", "--reason", "worse")[1]["decision_id"]
    assert _files(world, back) == {"intent.json", "decision.json", "decision.html"}
    assert world.client.get_model_version(NAME, "1").tags[names.DECISION] == "rolled_back"
    again = gate("promote", "--version", "2", "--force", "--reason", "it was not that bad")[1]
    assert again["decision"] == "forced"
    tags = world.client.get_model_version(NAME, "2").tags
    assert tags[names.FORCED_REASON] == "it was not that bad"


@ON_SQLITE_ALONE
def test_a_reason_to_force_goes_with_its_decision(world: World, models: dict[str, Path], gate: Gate) -> None:
    run_id = world.trial(models["bad"])
    gate("promote", "--run-id", run_id, "--force", "--reason", "a start")
    gate("promote", "--run-id", world.trial(models["good"]))
    gate("rollback")
    tags = world.client.get_model_version(NAME, "1").tags
    assert tags[names.DECISION] == "rolled_back"
    assert names.FORCED_REASON not in tags


@ON_SQLITE_ALONE
def test_a_description_that_a_person_wrote_stays(world: World, models: dict[str, Path], gate: Gate) -> None:
    gate("promote", "--run-id", world.trial(models["good"]), "--as", "challenger")
    assert world.client.get_model_version(NAME, "1").description.startswith("# Model card: ")
    world.client.update_model_version(NAME, "1", "ours since the fair")
    gate("promote", "--version", "1")
    assert world.client.get_model_version(NAME, "1").description == "ours since the fair"


@ON_SQLITE_ALONE
def test_the_card_command(
    world: World, models: dict[str, Path], gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gate.__main__ import main

    assert gate("card")[0] == 2
    gate("promote", "--run-id", world.trial(models["good"]))
    code, card = gate("card")
    assert code == 0
    assert card["version"] == "1"
    assert [event["decision"] for event in card["history"]] == ["promoted"]
    assert main(["card", "--version", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# Model card: {NAME}, version 1\n")
    assert main(["card", "--html", "--output", str(tmp_path / "card.html")]) == 0
    assert "<html" in (tmp_path / "card.html").read_text(encoding="utf-8")
    assert gate("card", "--version", "9")[0] == 2
    assert gate("card", "--output", str(tmp_path / "nowhere" / "card.md"))[0] == 2


@ON_SQLITE_ALONE
def test_pages_that_cannot_be_stored_are_written_by_the_next_command(
    world: World, models: dict[str, Path], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise requests.ConnectionError("the artifact store is gone")

    run_id = world.trial(models["good"])
    with monkeypatch.context() as patch:
        patch.setattr("gate.carry_out.attach", lost)
        with pytest.raises(requests.ConnectionError):
            promotion.promote(world.client, run_id=run_id)
    status = gate("status")[1]
    assert status["production_version"] == "1", "the promotion had happened"
    (entry,) = status["decisions"]
    assert entry["decision"] == "in_progress", "its process lives: this one"
    boot, namespace, *_ = names.owner_tags()[names.OWNER].split("/")
    world.client.set_tag(entry["decision_id"], names.OWNER, f"{boot}/{namespace}/999999999/1")
    assert [found["decision"] for found in gate("status")[1]["decisions"]] == ["promoted"]
    assert {"decision.html", "model_card.md", "decision.json"} < _files(world, entry["decision_id"])


@ON_SQLITE_ALONE
def test_a_page_with_a_mistake_in_it_does_not_hold_up_the_record(
    world: World, models: dict[str, Path], gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> str:
        raise KeyError("a mistake")

    for name in ("decision_page", "card_markdown"):
        monkeypatch.setattr(attachments, name, broken)
    decision = gate("promote", "--run-id", world.trial(models["good"]))[1]
    assert decision["decision"] == "promoted"
    files = _files(world, decision["decision_id"])
    assert {"decision.html.txt", "model_card.md.txt", "model_card.html", audit.DECISION_FILE} < files
    told = _read(world, decision["decision_id"], "decision.html.txt", tmp_path / "told").decode()
    assert "a mistake" in told
    assert not world.client.get_model_version(NAME, "1").description


@ON_SQLITE_ALONE
def test_a_copy_that_cannot_be_written_does_not_hold_up_the_record(
    world: World,
    models: dict[str, Path],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = MlflowClient.log_artifacts

    def broken(client: MlflowClient, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        if artifact_path is not None and artifact_path.startswith("decisions/"):
            raise NotADirectoryError("a file where the folder belongs")
        write(client, run_id, local_dir, artifact_path)

    monkeypatch.setattr(MlflowClient, "log_artifacts", broken)
    decision = gate("promote", "--run-id", world.trial(models["good"]))[1]
    assert decision["decision"] == "promoted"
    assert "the decision on the candidate's run" in caplog.text
    assert {"decision.html", "model_card.md", audit.DECISION_FILE} < _files(world, decision["decision_id"])
    assert [entry["decision"] for entry in gate("status")[1]["decisions"]] == ["promoted"]


@ON_SQLITE_ALONE
def test_a_decision_that_cannot_be_settled_holds_up_its_own_model_only(
    world: World, models: dict[str, Path], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot, namespace, *_ = names.owner_tags()[names.OWNER].split("/")
    tags = {names.KIND: names.KIND_DECISION, names.MODEL_NAME: "another", audit.INTENT: "promoted",
            **names.owner_tags(), names.OWNER: f"{boot}/{namespace}/999999999/1"}  # fmt: skip
    experiment = names.ensure_experiment(world.client, audit.EXPERIMENT)
    interrupted = world.client.create_run(experiment, tags=tags).info.run_id

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("cannot be undone")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "abandon", broken)
        assert gate("promote", "--run-id", world.trial(models["good"]))[1]["decision"] == "promoted"
        assert gate("status")[0] == 0
        assert world.client.get_run(interrupted).info.status == "RUNNING"
    assert gate("status")[0] == 0
    assert world.client.get_run(interrupted).info.status == "KILLED"
