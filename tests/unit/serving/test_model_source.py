"""The cache of downloaded versions: whole or not there, one download for all, old ones removed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.inference.folder import ModelFolderError
from serve_app.model_source import Copy, ModelCache, ModelVersion, find_model_folder


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
        copies = list(pool.map(fetch, range(4)))
    assert len(calls) == 1
    assert [copy.fresh for copy in copies].count(True) == 1
    (folder,) = {copy.folder for copy in copies}
    assert (folder / "trialgate.json").read_text() == "1"


def test_broken_download_leaves_nothing(cache, tmp_path):
    def breaks(wanted: ModelVersion, into: Path) -> None:
        download(wanted, into)
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        cache.fetch(version(1), breaks)
    assert files(tmp_path) == []
    assert cache.fetch(version(1), download).fresh


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


def copies(folder: Path) -> set[str]:
    """The versions on the disk; those with a dot are on their way."""
    return {path.name.rpartition("-")[0] for path in folder.glob("cache/my_model/*") if path.is_dir()}


def test_the_served_and_the_previous_version_are_kept_and_no_others(cache, tmp_path):
    for number in range(1, 8):
        cache.fetch(version(number), download)
        cache.remember_good(version(number))
        assert copies(tmp_path) == {str(number), *([str(number - 1)] if number > 1 else [])}
    for _ in range(2):  # and back, by two replicas
        cache.remember_good(version(6))
    assert cache.good("my model") == [version(6), version(7)]
    assert (
        len(list((tmp_path / "cache" / "my_model").iterdir())) == 6
    )  # two copies with locks, what is good with a lock


def test_versions_of_another_alias_are_kept_too(cache, tmp_path):
    challenger = ModelCache(tmp_path / "cache", "sqlite:////x", "challenger")
    for number, one in ((1, challenger), (2, cache), (3, cache), (4, cache)):
        one.fetch(version(number), download)
        one.remember_good(version(number))
    assert copies(tmp_path) == {"1", "3", "4"}


def test_what_loaded_well_is_forgotten_with_its_copy(cache):
    assert cache.good("my model") == []
    copy = cache.fetch(version(3), download)
    cache.remember_good(version(3))
    assert cache.good("my model") == [version(3)]
    assert cache.good("other") == []
    assert cache.discard(version(3), copy)
    assert cache.good("my model") == []


def test_a_better_copy_of_another_process_is_not_discarded(cache):
    broken = cache.fetch(version(1), download)
    assert cache.discard(version(1), broken)
    better = cache.fetch(version(1), download)
    assert not cache.discard(version(1), broken)
    assert cache.fetch(version(1), download) == Copy(better.folder, fresh=False)


def test_a_process_killed_while_it_downloads_leaves_nothing_that_is_taken_or_stays(cache, tmp_path):
    program = (
        "import os, signal; from tests.unit.serving.test_model_source import *\n"
        "def dies(wanted, into):\n"
        "    download(wanted, into); os.kill(os.getpid(), signal.SIGKILL)\n"
        "ModelCache(Path(sys.argv[1]), 'sqlite:////x', 'production').fetch(version(int(sys.argv[2])), dies)"
    )
    for number in ("1", "2"):
        command = [sys.executable, "-c", program, str(tmp_path / "cache"), number]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert copies(tmp_path) == {".1", ".2"}
    assert cache.fetch(version(1), download).fresh
    assert copies(tmp_path) == {"1", ".2"}
    cache.remember_good(version(1))
    assert copies(tmp_path) == {"1"}


def test_what_another_process_downloads_is_not_tidied_away(cache, tmp_path):
    downloading, go = threading.Event(), threading.Event()

    def slow(wanted: ModelVersion, into: Path) -> None:
        download(wanted, into)
        downloading.set()
        assert go.wait(timeout=20)

    with ThreadPoolExecutor(1) as pool:
        fetched = pool.submit(cache.fetch, version(2), slow)
        assert downloading.wait(timeout=20)
        cache.fetch(version(1), download)
        cache.remember_good(version(1))
        go.set()
        assert fetched.result(timeout=20).fresh
    assert copies(tmp_path) == {"1", "2"}


@pytest.mark.parametrize("notes", ["", "{}", '[{"copy": "x", "version": {"colour": "red"}}]'])
def test_notes_that_make_no_sense_are_no_notes(cache, tmp_path, notes):
    cache.fetch(version(1), download)
    cache.remember_good(version(1))
    (path,) = (tmp_path / "cache" / "my_model").glob("good-*.json")
    path.write_text(notes)
    assert cache.good("my model") == []
    cache.remember_good(version(1))
    assert cache.good("my model") == [version(1)]


def test_same_version_number_of_another_registry_is_another_model(tmp_path):
    one = ModelCache(tmp_path, "sqlite:////one", "production").fetch(version(1), download)
    two = ModelCache(tmp_path, "sqlite:////two", "production").fetch(version(1), download)
    assert one != two


def test_names_of_models_stay_inside_the_cache(cache, tmp_path):
    folder = cache.fetch(version(1, name="../../up"), download).folder
    assert (tmp_path / "cache") in folder.parents
