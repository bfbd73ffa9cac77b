"""What is removed from a search's storage when a trial ends, and what stays, in a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import s3fs

from ray_jobs.disk import keep_only_model
from ray_jobs.tracking import TrialRecord
from tests.s3 import S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_best_model_stays_among_the_empty_objects_that_ray_makes_for_folders(s3: S3) -> None:
    """pyarrow, with which Ray writes, makes one for each folder; a listing of the folder has it as an entry."""
    for key in ("", "snapshot.json", "epoch-1/", "epoch-1/model/", "epoch-1/model/model.safetensors",
                "epoch-1/state/", "epoch-1/state/state.safetensors", "epoch-2/", "epoch-2/state/x"):  # fmt: skip
        s3.client.put_object(Bucket=s3.bucket, Key=f"trials/a/{key}", Body=b"" if key.endswith("/") else b"x")
    keep_only_model(f"s3://{s3.bucket}/trials", TrialRecord("a", {}, 0.0, best_epoch=1))
    assert [key for key in s3.keys("trials/") if not key.endswith("/")] == ["trials/a/epoch-1/model/model.safetensors"]
