"""Storage that a search may not use is told before any trial, with its address and the fix; nothing is made there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from configs.exit_codes import ExitCode
from ray_jobs.search import main
from tests.conftest import RayCluster
from tests.integration.search.world import SMALL, arguments
from tests.s3 import S3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("bucket", "taken", "fix"),
    [
        pytest.param("", "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", "Unable to locate credentials. Set AWS_ACCESS_KEY",
                     id="without credentials"),
        pytest.param("-misspelt", "", "bucket does not exist. Correct its name, or make it first", id="wrong bucket"),
    ],
)  # fmt: skip
def test_a_bucket_that_does_not_open(
    s3: S3, bucket: str, taken: str, fix: str, ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # it remembers who it was
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    for name, value in s3.environment.items():
        if name not in taken.split():
            monkeypatch.setenv(name, value)
    storage = f"s3://{s3.bucket}{bucket}/searches"
    values = SMALL | {"home": str(tmp_path / "home"), "tracking.uri": tracking_uri, "search.storage": storage}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    assert main(["--config", "quickstart.yaml", *sets]) == ExitCode.UNREACHABLE
    told = capsys.readouterr().err
    assert f"error: search.storage {storage}/" in told
    assert fix in told
    assert "Traceback" not in told
    assert "epoch 1/" not in told
    assert s3.keys() == []
    assert f"{s3.bucket}-misspelt" not in [found["Name"] for found in s3.client.list_buckets()["Buckets"]]
