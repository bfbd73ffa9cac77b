"""One search in an MLflow of its own per test, and models that are made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import TrackingConfig
from gate import speed
from gate.__main__ import main
from serve_app.mlflow_client import connect
from tests.integration.gate.world import PICTURES, World, empty_picture, make_world
from tests.servers import BasicAuthServer, MlflowServer, PostgreSQL, empty_mlflow, empty_permissions
from tests.tiny import write_tiny_model

Gate = Callable[..., tuple[int, dict[str, Any]]]
# For a test whose calls to MLflow, and the errors that they end in, others make on a server too.
ON_SQLITE_ALONE = pytest.mark.parametrize("tracking_uri", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``good`` always answers right on the world's test split, the others do not; all have different weights."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "good": write_tiny_model(folder / "good", rule=True),
        "good-too": write_tiny_model(folder / "good-too", rule=True, max_length=63),
        "bad": write_tiny_model(folder / "bad", seed=1),
        "other-labels": write_tiny_model(folder / "other-labels", labels=("a", "b", "c")),
    }


@pytest.fixture(autouse=True)
def speed_of_two_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every judgement measures its models' speed on 32 texts, a third of a test's time, and none here is about that."""
    monkeypatch.setattr(speed, "TEXTS", 2)


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are empty here, but for the tests of pages and of commands as processes of their own."""
    for drawer, name in PICTURES:
        monkeypatch.setattr(drawer, name, empty_picture)


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def tracking_uri(request: pytest.FixtureRequest, tracking_uri: str) -> str:
    """Tests of the gate run on SQLite and, but for ON_SQLITE_ALONE, on an ``mlflow server`` with PostgreSQL."""
    if request.param == "sqlite":
        return tracking_uri
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return server.uri


@pytest.fixture
def artifacts(request: pytest.FixtureRequest, tracking_uri: str, tmp_path: Path) -> Path:
    """The folder that MLflow's artifacts lie in, somewhere."""
    if tracking_uri.startswith("sqlite"):
        return tmp_path
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return server.artifacts


@pytest.fixture(scope="session")
def session_auth_server(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BasicAuthServer]:
    """The session's ``mlflow server`` with users. A test takes ``auth_server``, which is empty."""
    databases = [postgresql.create_database(name) for name in ("mlflow_auth", "mlflow_users")]
    server = BasicAuthServer(*databases, tmp_path_factory.mktemp("auth-server"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def auth_server(session_auth_server: BasicAuthServer, postgresql: PostgreSQL) -> BasicAuthServer:
    """A running ``mlflow server`` with users, and with nothing in it."""
    empty_mlflow(postgresql, "mlflow_auth")
    empty_permissions(postgresql, "mlflow_users")
    return session_auth_server


@pytest.fixture
def world(tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A search without trials."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    return make_world(connect(TrackingConfig(uri=tracking_uri)), tracking_uri, tmp_path)


@pytest.fixture
def gate(world: World, capsys: pytest.CaptureFixture[str]) -> Gate:
    """Runs one command of ``python -m gate``; returns its exit code and JSON document."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run
