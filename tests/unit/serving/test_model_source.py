"""The cache of downloaded versions: whole or not there, one download for all, old ones removed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.inference.saved_model import ModelFolderError
from serve_app.model_source import ModelCache, ModelVersion, find_model_folder


def version(number: int, name: str = "my model") -> ModelVersion:
    return ModelVersion(name, str(number), f"source {number}")


def download(wanted: ModelVersion, into: Path) -> None:
    folder = into / "data" / "model"
    folder.mkdir(parents=True)
    (folder / "trialgate.json").write_text(wanted.version)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache", "sqlite:////x", "production")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_one_download_serves_all_replicas(cache):
    started, calls = threading.Barrier(4), []

    def slow(wanted: ModelVersion, into: Path) -> None:
        calls.append(wanted)
        download(wanted, into)

    def fetch(_: int) -> Path:
        started.wait(timeout=10)
        return cache.fetch(version(1), slow)

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(fetch, range(4)))
    assert len(calls) == 1
    assert (folders.pop() / "trialgate.json").read_text() == "1"


def test_broken_download_leaves_nothing(cache, tmp_path):
    def breaks(wanted: ModelVersion, into: Path) -> None:
        download(wanted, into)
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        cache.fetch(version(1), breaks)
    assert files(tmp_path) == []
    assert cache.fetch(version(1), download).is_dir()


def test_artifact_without_a_saved_model_is_refused_and_not_kept(cache, tmp_path):
    def other(wanted: ModelVersion, into: Path) -> None:
        (into / "model.pkl").write_bytes(b"x")

    with pytest.raises(ModelFolderError, match="expected one saved model"):
        cache.fetch(version(1), other)
    assert files(tmp_path) == []


def test_two_saved_models_in_one_artifact_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trialgate.json").touch()
    with pytest.raises(ModelFolderError, match="found 2"):
        find_model_folder(tmp_path)


def test_old_versions_are_removed_but_never_the_good_one(cache):
    folders = {}
    for number in range(1, 8):
        folders[number] = cache.fetch(version(number), download)
    cache.remember_good(version(1))
    kept = {number for number, folder in folders.items() if folder.exists()}
    assert 1 in kept
    assert len(kept) == 4


def test_last_good_is_forgotten_with_its_copy(cache):
    assert cache.last_good("my model") is None
    cache.fetch(version(3), download)
    cache.remember_good(version(3))
    assert cache.last_good("my model") == version(3)
    assert cache.last_good("other") is None
    cache.discard(version(3))
    assert cache.last_good("my model") is None


def test_same_version_number_of_another_registry_is_another_model(tmp_path):
    one = ModelCache(tmp_path, "sqlite:////one", "production").fetch(version(1), download)
    two = ModelCache(tmp_path, "sqlite:////two", "production").fetch(version(1), download)
    assert one != two


def test_names_of_models_stay_inside_the_cache(cache, tmp_path):
    folder = cache.fetch(version(1, name="../../up"), download)
    assert (tmp_path / "cache") in folder.parents
