"""The alias moves to a broken version: it is refused, told of and not kept, the old one serves, a good one is taken."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.follower import TRIES, Follower
from serve_app.inference.engine import Engine
from serve_app.inference.saved_model import weights_digest
from serve_app.model_source import ModelCache, ModelVersion
from tests.broken import BROKEN, Spoil, changed_weights, cut
from tests.tiny import write_tiny_model

NAME = "model"


class FolderAlias:
    """A registry of model folders, with a clock that only moves when told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.now = 0.0
        self.current: ModelVersion | None = None
        self.downloads: list[str] = []
        self.away = False

    def register(self, spoil: Spoil | None = None, digest: str | None = None) -> None:
        """A new version, under the alias at once."""
        number = str(len(list(self._folder.iterdir())) + 1)
        model = write_tiny_model(self._folder / number, seed=int(number), rule=True)
        if spoil is not None:
            spoil(model)
        self.current = ModelVersion(NAME, number, f"source {number}", weights_digest=digest)

    def find(self) -> ModelVersion | None:
        return self.current

    def download(self, version: ModelVersion, into: Path) -> None:
        if self.away:
            raise OSError("no route to host")
        self.downloads.append(version.version)
        shutil.copytree(self._folder / version.version, into / "data" / "model", symlinks=True)


class World:
    """A follower on real engines."""

    def __init__(self, folder: Path, alias: FolderAlias) -> None:
        self.folder, self.alias, self.load_errors = folder, alias, 0
        self.follower = Follower(
            alias, ModelCache(folder, "sqlite:////x", "production"), NAME,
            lambda model: Engine.load(model, precision="fp32", device="cpu"),
            on_loaded=lambda loaded: None, on_load_error=self._failed, clock=lambda: alias.now,
        )  # fmt: skip

    def _failed(self) -> None:
        self.load_errors += 1

    def look(self, times: int = 1, seconds_apart: float = 1.0) -> dict[str, Any]:
        for _ in range(times):
            self.follower.look()
            self.alias.now += seconds_apart
        return self.follower.status()

    @property
    def serving(self) -> str:
        assert self.follower.current is not None
        return self.follower.current.version.version

    @property
    def copies(self) -> list[str]:
        """The versions on the disk, whole or in part."""
        return sorted(path.name.partition("-")[0] for path in (self.folder / NAME).iterdir() if path.is_dir())


@pytest.fixture
def alias(tmp_path: Path) -> FolderAlias:
    (tmp_path / "registry").mkdir()
    return FolderAlias(tmp_path / "registry")


@pytest.fixture
def world(alias: FolderAlias, tmp_path: Path) -> World:
    world = World(tmp_path / "cache", alias)
    alias.register()
    world.look()
    assert world.serving == "1"
    return world


def assert_refused(world: World, words: str) -> None:
    """The version under the alias does not come to serve, however long one waits."""
    status = world.look()
    (error,) = status["load_errors"]
    assert status["desired_version"] == error["version"] == "2"
    assert words in error["error"]
    assert "Move the alias" in error["fix"]
    assert (world.serving, world.copies, world.load_errors) == ("1", ["1"], 1)
    world.look(times=8)
    assert world.alias.downloads == ["1", "2", "2", "2"]  # after 2 and 6 seconds, not at every look
    world.look(times=200, seconds_apart=10.0)
    assert world.load_errors == TRIES
    assert world.alias.downloads == ["1", *["2"] * TRIES]
    assert (world.serving, world.copies) == ("1", ["1"])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_version_is_refused_and_a_good_one_follows(world: World, name: str) -> None:
    spoil, words = BROKEN[name]
    world.alias.register(spoil)
    assert_refused(world, words)
    world.alias.register()
    world.look()
    assert (world.serving, world.copies) == ("3", ["1", "3"])


def test_digest_that_is_not_the_registrys(world: World) -> None:
    world.alias.register(digest="0" * 64)
    assert_refused(world, "expected 0000000000000000...")


def test_symbolic_link_is_not_followed(world: World, tmp_path: Path) -> None:
    def link(folder: Path) -> None:
        (folder / "config.json").rename(tmp_path / "elsewhere.json")
        (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")

    world.alias.register(link)
    assert_refused(world, "has a symbolic link, data/model/config.json")


def test_store_that_is_away_is_asked_again_until_it_is_back(world: World) -> None:
    world.alias.register()
    world.alias.away = True
    (error,) = world.look(times=100, seconds_apart=60.0)["load_errors"]
    assert error["error"] == "no route to host"
    assert "tried again in 60 s" in error["fix"]
    assert error["tries"] == 100
    world.alias.away = False
    assert world.look(times=2, seconds_apart=60.0)["load_errors"] == []
    assert world.serving == "2"


@pytest.mark.parametrize("damage", [cut, changed_weights, shutil.rmtree])
def test_copy_that_was_damaged_here_is_downloaded_anew(world: World, damage: Spoil) -> None:
    damage(_copy(world))
    newcomer = World(world.folder, world.alias)
    assert newcomer.look()["load_errors"] == []
    assert newcomer.serving == "1"
    assert world.alias.downloads == ["1", "1"]


def test_small_change_in_a_copy_is_seen_by_its_digest(world: World) -> None:
    path = _copy(world) / "trialgate.json"
    path.write_text(path.read_text().replace('"temperature": 1.0', '"temperature": 1.01'))
    newcomer = World(world.folder, world.alias)
    newcomer.look()
    assert newcomer.serving == "1"
    assert world.alias.downloads == ["1", "1"]


def test_model_in_use_survives_the_loss_of_its_files(world: World) -> None:
    assert world.follower.current is not None
    engine = world.follower.current.engine
    before = engine.predict(["a good movie"])
    for path in _copy(world).iterdir():
        path.write_bytes(b"")
    engine.warm_up()
    assert (engine.predict(["a good movie"]) == before).all()


def test_damaged_copy_without_its_registry_gives_way_to_the_one_before(world: World) -> None:
    world.alias.register()
    world.look()
    assert world.serving == "2"
    cut(_copy(world))
    newcomer = World(world.folder, world.alias)
    world.alias.away = True
    status = newcomer.look()
    assert newcomer.serving == "1"
    assert status["started_from_last_good"]
    (error,) = status["load_errors"]
    assert error["version"] == "2"
    assert "the copy here is broken" in error["error"]
    assert "no route to host" in error["error"]
    world.alias.away = False
    status = newcomer.look(times=3)
    assert newcomer.serving == "2"
    assert not status["started_from_last_good"]


def test_digest_of_the_registry_is_that_of_the_folder(world: World) -> None:
    world.alias.register()
    assert world.alias.current is not None
    folder = world.folder.parent / "registry" / "2"
    world.alias.current = replace(world.alias.current, weights_digest=weights_digest(folder))
    assert world.look()["load_errors"] == []
    assert world.serving == "2"


def _copy(world: World) -> Path:
    """The folder of the served version's copy."""
    (info,) = (world.folder / NAME).glob(f"{world.serving}-*/*/data/model/trialgate.json")
    return info.parent
