"""The folder of the output: what it says is finished, what it refuses, and what it cleans up."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from configs.exit_codes import UsageError
from ray_jobs.batch.output import Output, part_name
from ray_jobs.command import StorageUnavailable

JOB = {"model": "m@production", "version": {"version": "1"}, "settings": {}, "files": []}


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/out" if request.param == "memory" else str(tmp_path / "out")


def test_a_job_from_its_beginning_to_its_end(url: str) -> None:
    output = Output(url, "csv")
    assert output.job() is None
    assert output.begin(JOB) == JOB
    assert output.begin({**JOB, "version": {"version": "2"}}) == JOB, "the first start decides"
    assert (output.job(), output.finished(), output.result()) == (JOB, {}, None)
    for _ in range(2):  # by a worker that was thought lost
        output.write_part(part_name(0, 1, 10), b"text\n", b"")
    output.write_part(part_name(123_456, 11, 3), b"text\n", b'{"reason": "empty_text"}\n{"reason": "not_text"}\n')
    output.write_part(part_name(123_456, 12_345_678_901, 1), b"", b'{"reason": "empty_text"}\n')
    assert Output(url, "csv").finished() == {0: {1: 10}, 123_456: {11: 3, 12_345_678_901: 1}}
    assert output.rejected() == {"empty_text": 2, "not_text": 1}
    output.complete({"rows": 14})
    assert Output(url, "csv").result() == {"rows": 14}


def test_names_of_parts_sort_as_their_rows_do() -> None:
    names = [part_name(file, row, rows) for file in (0, 2, 10) for row, rows in ((1, 1000), (1001, 20), (100_001, 3))]
    assert names == sorted(names)


def test_a_folder_with_other_things_is_refused(url: str) -> None:
    with fsspec.open(f"{url}/mine.csv", "w", auto_mkdir=True) as file:
        file.write("text\n")
    with pytest.raises(UsageError, match=r"exists and is not the output of a batch job: name a new or empty folder"):
        Output(url, "csv").job()
    with pytest.raises(UsageError, match=r"mine.csv is a file"):
        Output(f"{url}/mine.csv", "csv").job()


@pytest.mark.parametrize("content", ["{", "[]", '{"model": "m@production"}'])
def test_a_damaged_job_file_is_refused(url: str, content: str) -> None:
    with fsspec.open(f"{url}/_job.json", "w", auto_mkdir=True) as file:
        file.write(content)
    with pytest.raises(UsageError, match=r"_job.json is damaged"):
        Output(url, "csv").job()


def test_what_a_killed_worker_was_writing_is_removed_at_the_end(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "csv")
    output.begin(JOB)
    left = [tmp_path / ".tmp-12-part-00000-0000000001-10.csv", tmp_path / "_rejected" / ".tmp-12-part.jsonl"]
    for path in left:
        path.touch()
    assert (output.finished(), output.rejected()) == ({}, {})
    assert all(path.exists() for path in left), "it may be of a worker that is alive"
    output.complete({})
    assert not any(path.exists() for path in left)


def test_a_start_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0a-_job.json").write_bytes(b"{")
    output = Output(str(tmp_path), "csv")
    assert output.job() is None
    assert output.begin(JOB) == JOB


def test_the_password_of_the_store_is_not_in_its_name() -> None:
    assert "secret" not in Output("memory://user:secret@host/out", "csv").name


def test_what_cannot_be_written_is_unreachable(tmp_path: Path) -> None:
    output = Output("/dev/full/out", "csv")
    with pytest.raises(StorageUnavailable, match=r"batch_score.output /dev/full/out cannot be used"):
        output.begin(JOB)
    with pytest.raises(UsageError, match="batch_score.output nonsense://x"):
        Output("nonsense://x", "csv")
