"""Artifacts and checkpoints on S3: promoted, rolled back, and loaded as serving does it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from configs.exit_codes import ExitCode
from configs.schema import TrackingConfig
from serve_app.follower import Follower
from serve_app.inference.engine import Engine
from serve_app.mlflow_client import connect
from serve_app.model_source import ModelCache, RegistryAlias
from tests.integration.gate.conftest import Gate
from tests.integration.gate.world import World
from tests.s3 import S3
from tests.servers import MlflowServer

NAME = "trialgate-classifier"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3_client(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may use S3."""
    s3fs.S3FileSystem.clear_instance_cache()  # they keep their credentials
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def tracking_uri(
    request: pytest.FixtureRequest, s3: S3, mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A server whose artifacts lie on S3: ``proxied``, clients know nothing of it; ``direct``, they go there."""
    monkeypatch.chdir(tmp_path)
    folder = f"s3://{s3.bucket}/{request.param}"
    if request.param == "proxied":
        options = ["--artifacts-destination", folder]
    else:
        options = ["--default-artifact-root", folder, "--no-serve-artifacts"]
        request.getfixturevalue("s3_client")
    database = tmp_path / "mlflow.db"
    shutil.copyfile(mlflow_template, database)
    server = MlflowServer(f"sqlite:///{database}", tmp_path / "server", *options, workers=1, environment=s3.environment)
    yield server.uri
    server.kill()


def _served(tracking_uri: str, folder: Path) -> tuple[str, str]:
    """Version and answer of a serving replica that starts now."""
    tracking = TrackingConfig(uri=tracking_uri)
    follower = Follower(
        RegistryAlias(tracking, "production"),
        ModelCache(folder, tracking_uri, "production"),
        NAME,
        lambda path: Engine.load(path, precision="fp32"),
        on_loaded=lambda loaded: None,
    )
    follower.look()
    assert follower.current is not None, follower.status()
    engine = follower.current.engine
    return follower.current.version.version, engine.labels[int(engine.predict(["it was good"])[0].argmax())]


@pytest.mark.parametrize("tracking_uri", ["proxied", "direct"], indirect=True)
def test_promoted_served_and_rolled_back(
    s3: S3, tracking_uri: str, world: World, models: dict[str, Path], gate: Gate, tmp_path: Path
) -> None:
    for version, model in enumerate(("good", "good-too"), start=1):
        code, decision = gate("promote", "--run-id", world.trial(models[model]))
        assert (code, decision["model_version"]) == (0, str(version))
        assert _served(tracking_uri, tmp_path / "cache") == (str(version), "positive")
    assert gate("rollback")[1]["production_version"] == "1"
    assert _served(tracking_uri, tmp_path / "another-machine") == ("1", "positive")
    kind = "proxied" if world.client.get_run(world.parent).info.artifact_uri.startswith("mlflow-") else "direct"
    kept = s3.keys(f"{kind}/")
    assert len([key for key in kept if key.endswith("model.safetensors")]) == 2
    assert [key for key in kept if key.endswith("decision.json")]
    for key in kept:
        body = s3.client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
        assert s3.secret.encode() not in body, key


@pytest.mark.usefixtures("s3_client")
@pytest.mark.parametrize("tracking_uri", ["proxied"], indirect=True)
def test_storage_that_is_gone_or_refuses_is_not_a_verdict(
    s3: S3, world: World, models: dict[str, Path], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = f"s3://{s3.bucket}/checkpoints/good"
    files = s3fs.S3FileSystem()
    files.put(f"{models['good']}/", checkpoint, recursive=True)
    code, decision = gate("check", "--run-id", world.trial(checkpoint))
    assert (code, decision["f1"]) == (0, 1.0)
    code, decision = gate("promote", "--run-id", world.trial(f"{checkpoint}/nowhere"))
    assert (code, decision["decision"]) == (ExitCode.BLOCKED, "blocked")
    assert "is not there" in decision["reason"]

    candidate = world.trial(checkpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as without:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            without.delenv(name)
        code, document = gate("promote", "--run-id", candidate)
    assert code == ExitCode.UNREACHABLE
    assert "credentials" in document["error"]
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, document = gate("promote", "--run-id", candidate)
    assert code == ExitCode.UNREACHABLE
    assert "http://127.0.0.1:9" in document["error"]
    assert [entry["decision"] for entry in gate("history")[1]["decisions"]] == ["blocked"]
    assert connect(TrackingConfig(uri=world.uri)).search_registered_models() == []
