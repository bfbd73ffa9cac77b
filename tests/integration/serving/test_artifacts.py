"""What stores do to a download: files that are gone, and names that lead elsewhere. A real registry, no Ray."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from configs.schema import Settings
from serve_app.follower import Follower
from serve_app.inference.engine import Engine
from serve_app.model_source import ModelCache, RegistryAlias
from tests.integration.serving.world import NAME, Registry, free_port


class World:
    """A follower of a registry, with a clock that only moves when told."""

    def __init__(self, registry: Registry, cache: Path) -> None:
        tracking = Settings.model_validate({"tracking": {"uri": registry.uri, "model_name": NAME}}).tracking
        self.registry, self.cache, self.now = registry, cache, 0.0
        self.follower = Follower(
            RegistryAlias(tracking, "production"), ModelCache(cache, registry.uri, "production"), NAME,
            lambda folder: Engine.load(folder, device="cpu"), on_loaded=lambda loaded: None, clock=lambda: self.now,
        )  # fmt: skip

    def errors(self, times: int = 1) -> list[str]:
        """Those of the version under the alias, after some looks a minute apart."""
        for _ in range(times):
            self.follower.look()
            self.now += 60.0
        return [error["error"] for error in self.follower.status()["load_errors"]]

    @property
    def serving(self) -> str | None:
        return self.follower.current.version.version if self.follower.current else None

    def copies(self) -> int:
        return len([path for path in (self.cache / NAME).iterdir() if path.is_dir()])


@pytest.fixture
def world(tracking_uri: str, tmp_path: Path) -> World:
    world = World(Registry(tracking_uri, tmp_path), tmp_path / "cache")
    world.registry.promote(world.registry.register())
    assert world.errors() == []
    assert world.serving == "1"
    return world


def _stored(tmp_path: Path, made: int) -> Path:
    (info,) = tmp_path.glob(f"mlruns/**/model{made}/trialgate.json")
    return info.parent


def test_artifacts_that_are_gone_are_waited_for(world: World, tmp_path: Path):
    world.registry.promote(world.registry.register())
    stored = _stored(tmp_path, 2).parent.parent
    stored.rename(tmp_path / "away")
    (error,) = world.errors(times=20)
    assert "nothing is stored as the artifact of version 2" in error
    assert (world.serving, world.copies()) == ("1", 1)
    (tmp_path / "away").rename(stored)
    assert world.errors() == []
    assert world.serving == "2"


def test_link_out_of_the_artifact_is_not_followed(world: World, tmp_path: Path):
    world.registry.promote(world.registry.register())
    path = _stored(tmp_path, 2) / "config.json"
    shutil.move(path, tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    (error,) = world.errors(times=10)
    assert "outside the artifact directory" in error
    assert (world.serving, world.copies()) == ("1", 1)


@pytest.fixture
def store_that_leads_elsewhere() -> Iterator[str]:
    """An artifact store over HTTP whose listings have a path with ``..`` in it. Its address."""

    class Store(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = "path" in parse_qs(urlsplit(self.path).query)
            files = [{"path": name, "is_dir": False, "file_size": 4} for name in ("MLmodel", "../../../../evil.json")]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"files": files}).encode() if listed else b"evil")

        def log_message(self, *arguments: object) -> None:
            """Nothing in the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/model"
    server.shutdown()
    server.server_close()
    thread.join()


def test_path_out_of_the_download_is_not_written(world: World, tmp_path: Path, store_that_leads_elsewhere: str):
    MlflowClient(world.registry.uri).create_model_version(NAME, store_that_leads_elsewhere)
    world.registry.promote("2")
    (error,) = world.errors(times=10)
    assert "Invalid path" in error
    assert (world.serving, world.copies()) == ("1", 1)
    assert list(tmp_path.rglob("evil*")) == []
