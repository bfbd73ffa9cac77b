"""Following an alias with fakes for the registry and the engine: what loads, what is kept, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.follower import TRIES, Follower, Loaded
from serve_app.inference.folder import ModelFolderError
from serve_app.mlflow_client import TrackingUnavailable
from serve_app.model_source import ModelCache, ModelVersion

NAME = "model"


def version(number: int) -> ModelVersion:
    return ModelVersion(NAME, str(number), f"source-{number}", run_id=f"run-{number}", f1=0.9)


class FakeAlias:
    """A registry in memory: a model folder of version 3 is one with "3" in its file."""

    def __init__(self) -> None:
        self.current: ModelVersion | None = None
        self.down = False
        self.downloads: list[str] = []

    def find(self) -> ModelVersion | None:
        if self.down:
            raise TrackingUnavailable("MLflow at http://nowhere cannot be used")
        return self.current

    def download(self, wanted: ModelVersion, into: Path) -> None:
        if self.down:
            raise OSError("no route to host")
        self.downloads.append(wanted.version)
        folder = into / "data" / "model"
        folder.mkdir(parents=True)
        (folder / "trialgate.json").write_text(wanted.version)


class World:
    """A follower on a fake registry, with a clock that only moves when told."""

    def __init__(self, cache_folder: Path, alias: FakeAlias) -> None:
        self.alias, self.now = alias, 0.0
        self.broken: dict[str, Exception] = {}
        self.loaded: list[str] = []
        self.load_errors = 0
        self.changes = 0
        self.follower = Follower(
            alias, ModelCache(cache_folder, "sqlite:////x", "production"), NAME, self._load,
            on_loaded=self._take, on_change=self._changed, on_load_error=self._failed, clock=lambda: self.now,
        )  # fmt: skip

    def _load(self, folder: Path) -> Any:
        found = (folder / "trialgate.json").read_text()
        if found in self.broken:
            raise self.broken[found]
        return SimpleNamespace(weights_digest=f"digest {found}")

    def _take(self, loaded: Loaded) -> None:
        self.loaded.append(loaded.version.version)

    def _changed(self) -> None:
        self.changes += 1

    def _failed(self) -> None:
        self.load_errors += 1

    def look(self, current: ModelVersion | None, after_s: float = 0.0) -> dict[str, Any]:
        self.alias.current = current
        self.now += after_s
        self.follower.look()
        return self.follower.status()


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[], World]:
    alias = FakeAlias()
    return lambda: World(tmp_path / "cache", alias)


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


def test_nothing_promoted_yet_is_no_error(world):
    status = world.look(None)
    assert status == {
        "desired_version": None,
        "loading_version": None,
        "started_from_last_good": False,
        "load_errors": [],
        "registry_error": None,
    }
    assert world.loaded == []


def test_each_version_is_loaded_once(world):
    for _ in range(3):
        world.look(version(1))
    world.look(version(2))
    world.look(version(1))
    assert world.loaded == ["1", "2", "1"]
    assert world.alias.downloads == ["1", "2"]  # the way back comes from the cache


def test_version_that_was_deleted_and_made_anew_is_another_one(world):
    world.look(version(1))
    world.look(ModelVersion(NAME, "1", "another source"))
    assert world.loaded == ["1", "1"]
    assert world.alias.downloads == ["1", "1"]


def test_changed_tags_are_taken_over_without_loading(world):
    world.look(version(1))
    world.look(ModelVersion(NAME, "1", "source-1", f1=0.95))
    assert world.loaded == ["1"]
    assert world.follower.current.version.f1 == 0.95


def test_broken_version_is_remembered_and_tried_again_with_growing_pauses(world):
    world.look(version(1))
    world.broken["2"] = ModelFolderError("model.safetensors is missing\nand more")
    status = world.look(version(2))
    assert status["desired_version"] == "2"
    (error,) = status["load_errors"]
    assert (error["version"], error["error"], error["tries"]) == ("2", "model.safetensors is missing", 1)
    tried_at = []
    for _ in range(200):
        before = world.load_errors
        world.look(version(2), after_s=1.0)
        if world.load_errors > before:
            tried_at.append(world.now)
    assert tried_at == [2.0, 6.0, 14.0, 30.0]
    assert world.load_errors == TRIES
    assert world.loaded == ["1"]
    assert world.follower.current.version.version == "1"


def test_repaired_version_is_taken_and_its_error_forgotten(world):
    world.broken["1"] = ModelFolderError("cut off")
    world.look(version(1))
    world.broken.clear()
    assert world.look(version(1), after_s=2.0)["load_errors"] == []
    assert world.loaded == ["1"]
    assert world.alias.downloads == ["1", "1"]  # the broken copy was not kept


def test_moving_the_alias_back_to_a_broken_version_tries_it_again(world):
    world.broken["2"] = ModelFolderError("broken")
    world.look(version(1))
    for _ in range(100):
        world.look(version(2), after_s=10.0)
    world.look(version(1))
    world.broken.clear()
    world.look(version(2))
    assert world.loaded == ["1", "2"]


def test_lost_mlflow_changes_nothing(world):
    world.look(version(1))
    world.alias.down = True
    assert "cannot be used" in world.look(version(2))["registry_error"]
    assert world.loaded == ["1"]
    world.alias.down = False
    assert world.look(version(2))["registry_error"] is None
    assert world.loaded == ["1", "2"]


def test_removed_alias_does_not_end_the_service(world):
    world.look(version(1))
    assert world.look(None)["desired_version"] is None
    assert world.follower.current.version.version == "1"


def test_new_replica_starts_from_the_last_good_version_while_mlflow_is_down(make_world):
    make_world().look(version(1))
    newcomer = make_world()
    newcomer.alias.down = True
    assert newcomer.look(None)["started_from_last_good"]
    assert newcomer.loaded == ["1"]
    newcomer.look(None)
    assert newcomer.loaded == ["1"]
    newcomer.alias.down = False
    assert not newcomer.look(version(1))["started_from_last_good"]
    assert newcomer.loaded == ["1"]
    newcomer.look(version(2))
    assert newcomer.loaded == ["1", "2"]


def test_new_replica_starts_from_the_last_good_version_while_the_alias_is_broken(make_world):
    make_world().look(version(1))
    newcomer = make_world()
    newcomer.broken["2"] = ModelFolderError("broken")
    status = newcomer.look(version(2))
    assert newcomer.loaded == ["1"]
    assert status["desired_version"] == "2"
    assert [error["version"] for error in status["load_errors"]] == ["2"]


def test_changes_are_announced(world):
    world.look(version(1))
    before = world.changes
    world.look(version(1))
    assert world.changes == before
    world.alias.down = True
    world.look(version(1))
    assert world.changes > before


def test_thread_looks_until_it_is_stopped(world):
    world.alias.current = version(1)
    world.follower.start()
    world.follower.first_look.result(timeout=10)
    assert world.loaded == ["1"]
    assert world.follower.alive
    world.follower.stop()
