"""The gate on an MLflow server with users: who may do what, what the others are told, and where passwords end up."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from configs.exit_codes import ExitCode
from configs.schema import TrackingConfig
from gate.__main__ import main
from serve_app.mlflow_client import TrackingUnavailable, connect
from serve_app.model_source import RegistryAlias
from tests.integration.gate.world import World, make_world
from tests.servers import BasicAuthServer, PostgreSQL

NAME = "trialgate-classifier"

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def user(auth_server: BasicAuthServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the following commands be given by this user."""

    def become(name: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", auth_server.users[name])

    return become


@pytest.fixture
def search(
    auth_server: BasicAuthServer, user: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    """A search of the admin's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", auth_server.uri)
    user("admin")
    return make_world(connect(TrackingConfig(uri=auth_server.uri)), auth_server.uri, tmp_path)


@pytest.fixture
def command(auth_server: BasicAuthServer) -> Run:
    """Runs a gate command; returns exit code, document, and all that was printed. No password may be in it."""

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*arguments, "--json"])
        printed = out.getvalue() + err.getvalue()
        assert not [name for name, password in auth_server.users.items() if password in printed]
        return code, json.loads(out.getvalue()), printed

    return run


def _content(client: MlflowClient) -> dict[str, Any]:
    """All there is on the server: runs with their tags and metrics, models, versions, logged models."""
    experiments = [found.experiment_id for found in client.search_experiments(view_type=ViewType.ALL)]
    runs = client.search_runs(experiments, run_view_type=ViewType.ALL)
    return {
        "experiments": sorted(experiments),
        "runs": {run.info.run_id: (run.info.status, run.data.tags, run.data.metrics) for run in runs},
        "models": {model.name: (model.aliases, model.tags) for model in client.search_registered_models()},
        "versions": {(version.name, version.version): version.tags for version in client.search_model_versions()},
        "logged": sorted(str(logged.model_id) for logged in client.search_logged_models(experiments)),
    }


@pytest.mark.parametrize(("name", "password"), [(None, None), ("reader", "wrong-password"), ("nobody", "whatever")])
def test_without_credentials_or_with_wrong_ones(
    search: World, command: Run, monkeypatch: pytest.MonkeyPatch, name: str | None, password: str | None
) -> None:
    for variable, value in {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}.items():
        monkeypatch.delenv(variable)
        if value is not None:
            monkeypatch.setenv(variable, value)
    code, document, printed = command("status")
    assert code == ExitCode.UNREACHABLE
    assert "MLFLOW_TRACKING_USERNAME" in document["error"]
    assert (f"user '{name}'" if name else "a request without user name") in document["error"]
    assert "Traceback" not in printed
    assert password is None or password not in printed


def test_reader_looks_and_changes_nothing(
    search: World,
    models: dict[str, Path],
    user: Callable[[str], None],
    command: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, better, third = (search.trial(models[model]) for model in ("good", "good-too", "good"))
    user("reader")
    nothing = _content(search.client)
    for arguments in (("promote", "--run-id", good), ("promote", "--run-id", good, "--force", "--reason", "r")):
        code, document, printed = command(*arguments)  # nothing is registered yet: a reader may make models of his own
        assert (code, _content(search.client)) == (ExitCode.UNREACHABLE, nothing)
        assert "user 'reader'" in document["error"]
        assert f"write to run {good}" in document["error"]
        assert "Traceback" not in printed
    user("admin")
    for run_id in (good, better):
        assert command("promote", "--run-id", run_id)[0] == 0
    user("reader")
    before = _content(search.client)
    assert command("status")[1]["production_version"] == "2"
    assert len(command("history")[1]["decisions"]) == 2
    code, decision, _ = command("check", "--run-id", third)
    assert (code, decision["decision"]) == (0, "would_promote")
    assert "could not be stored" in caplog.text
    for arguments, what in {
        ("promote", "--version", "1"): "write to run",
        ("rollback",): "write to experiment",
        ("prune", "--keep", "1"): "write to experiment",
    }.items():
        code, document, printed = command(*arguments)
        assert code == ExitCode.UNREACHABLE, arguments
        assert "user 'reader'" in document["error"]
        assert what in document["error"]
        assert "Traceback" not in printed
    assert _content(search.client) == before


@pytest.mark.slow
def test_editor_promotes_and_only_a_manager_takes_back(
    search: World, models: dict[str, Path], user: Callable[[str], None], command: Run
) -> None:
    good, better = search.trial(models["good"]), search.trial(models["good-too"])
    user("promoter")  # whose model it becomes
    assert command("promote", "--run-id", good)[0] == 0
    user("editor")
    code, decision, _ = command("promote", "--run-id", better)
    assert (code, decision["model_version"]) == (0, "2")
    before = _content(search.client)
    code, document, _ = command("rollback")
    assert (code, _content(search.client)) == (ExitCode.UNREACHABLE, before)
    assert "remove aliases and tags from registered model" in document["error"]
    user("promoter")
    code, decision, _ = command("rollback")
    assert (code, decision["production_version"]) == (0, "1")
    code, decision, _ = command("promote", "--run-id", better, "--force", "--reason", "it was good after all")
    assert (code, decision["decision"]) == (0, "forced")
    assert [entry["decision"] for entry in command("history")[1]["decisions"]] == [
        "forced", "rolled_back", "promoted", "promoted",
    ]  # fmt: skip


def test_credentials_in_the_address_work_and_are_kept_nowhere(
    search: World,
    models: dict[str, Path],
    auth_server: BasicAuthServer,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = search.trial(models["good"])
    for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(variable)
    password = auth_server.users["promoter"]
    address = auth_server.uri.replace("http://", f"http://promoter:{quote(password)}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    file = tmp_path / "decision.json"
    code, decision, _ = command("promote", "--run-id", run_id, "--json-file", str(file))
    assert (code, decision["decision"]) == (0, "promoted")
    assert password not in file.read_text()
    alias = RegistryAlias(TrackingConfig(uri=address), "production")
    version = alias.find()
    assert version is not None
    alias.download(version, tmp_path / "served")
    assert list((tmp_path / "served").rglob("model.safetensors"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", auth_server.users["admin"])
    assert password not in repr(_content(search.client))
    for stored in auth_server.artifacts.rglob("*"):
        assert not stored.is_file() or password.encode() not in stored.read_bytes(), stored
    assert password not in caplog.text
    kept = [artifact.path for artifact in search.client.list_artifacts(decision["decision_id"])]
    assert "decision.json" in kept


def test_serving_is_told_why_it_gets_no_model(
    search: World, auth_server: BasicAuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-password")
    with pytest.raises(TrackingUnavailable, match="MLflow refuses user 'admin'") as refused:
        RegistryAlias(TrackingConfig(uri=auth_server.uri), "production").find()
    assert "wrong-password" not in str(refused.value)


def test_password_of_a_database_address_is_kept_nowhere(
    postgresql: PostgreSQL,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The gate straight on PostgreSQL, without a server."""
    monkeypatch.chdir(tmp_path)  # where MLflow then puts artifacts
    address = postgresql.create_database("gate_alone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    world = make_world(connect(TrackingConfig(uri=address)), address, tmp_path)
    capfd.readouterr()
    assert main(["promote", "--run-id", world.trial(models["good"]), "--json"]) == 0
    printed = capfd.readouterr()
    decision = json.loads(printed.out)
    assert decision["decision"] == "promoted"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert "decision.json" in [file.name for file in files]
    for file in files:
        assert postgresql.password.encode() not in file.read_bytes(), file
    for shown in (printed.out, printed.err, caplog.text, repr(_content(world.client))):
        assert postgresql.password not in shown
