"""What a search leaves in an object store, written as Train does it: pyarrow makes empty objects for folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import s3fs
from pyarrow import fs

from ray_jobs.disk import keep_only_model, remove_trial
from ray_jobs.tracking import TrialRecord
from tests.s3 import S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server that this process may use."""
    server = S3()
    s3fs.S3FileSystem.clear_instance_cache()  # they keep their credentials
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def checkpoint(s3: S3, trial: str, epoch: int, *folders: str) -> None:
    store, path = fs.FileSystem.from_uri(f"s3://{s3.bucket}/trials/{trial}/epoch-{epoch}")
    for folder in folders:
        store.create_dir(f"{path}/{folder}")
        with store.open_output_stream(f"{path}/{folder}/weights") as file:
            file.write(b"1")


def files(s3: S3) -> list[str]:
    return [key.removeprefix("trials/") for key in s3.keys("trials/") if not key.endswith("/")]


def test_of_an_ended_trial_the_best_model_stays(s3: S3) -> None:
    for trial in ("a", "b"):
        checkpoint(s3, trial, 1, "state")
        checkpoint(s3, trial, 2, "state", "model")
    trials = f"s3://{s3.bucket}/trials"
    keep_only_model(trials, TrialRecord("a", {}, 0.0, "finished", best_epoch=2))
    assert files(s3) == ["a/epoch-2/model/weights", "b/epoch-1/state/weights", "b/epoch-2/model/weights",
                         "b/epoch-2/state/weights"]  # fmt: skip
    remove_trial(trials, "b")
    assert files(s3) == ["a/epoch-2/model/weights"]
