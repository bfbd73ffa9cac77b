"""Folders are made where there are some, and what keeps a storage shut is told with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore.exceptions import NoCredentialsError

from ray_jobs.disk import make_folder
from serve_app.refusals import storage_problem


class Bucketed:
    """A file system as s3fs is, which makes a bucket where it is asked for a folder in it."""

    protocol = ("s3", "s3a")

    def makedirs(self, path: str, exist_ok: bool) -> None:
        raise AssertionError(f"a bucket would be made for {path}")


def test_a_folder_is_made_where_there_are_folders(tmp_path: Path) -> None:
    make_folder(fsspec.filesystem("file"), str(tmp_path / "a" / "b"))
    make_folder(fsspec.filesystem("file"), str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    bucketed: Any = Bucketed()
    make_folder(bucketed, "bucket/a/b")


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("s3://b/x", NoCredentialsError(), "Unable to locate credentials. Set AWS_ACCESS_KEY_ID and "),
        ("s3://b/x", PermissionError("Access Denied"), "Access Denied. These credentials do not open it: "),
        ("s3://b/x", FileNotFoundError("The specified bucket does not exist"), "exist. Correct its name, or make it "),
        ("s3://b/x", OSError("a\nb"), "a b"),
        ("s3://b/x", TimeoutError(), "TimeoutError"),
        ("/b/x", PermissionError(13, "Permission denied"), "[Errno 13] Permission denied"),
    ],
)
def test_what_keeps_a_storage_shut(url: str, error: Exception, told: str) -> None:
    assert told in storage_problem(url, error)
