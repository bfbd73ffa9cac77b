"""What batch scoring refuses, with which words and exit code, and what a dry run tells. No worker is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from configs.loading import load_settings
from ray_jobs.batch.plan import find_job
from tests.integration.batch.world import Batch
from tests.integration.serving.world import NAME, Registry


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n1,good\n2,bad\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text-column", "txt"], "has no column 'txt'; did you mean 'text'? It has: id, text; set --text-column"),
        (
            ["--model", "trialgate-clasifier@production"],
            f"no registered model 'trialgate-clasifier'; did you mean '{NAME}'",
        ),
        (["--model", f"{NAME}@productoin"], "has no alias 'productoin'; did you mean 'production'?"),
        (["--model", f"{NAME}@x"], "has no alias 'x'; its aliases are production"),
        (["--model", f"{NAME}/7"], "has no version 7; its versions are 1"),
        (["--model", NAME], "batch_score.model: String should match pattern"),
        (["--set", "batch_score.rows_per_prt=3"], "did you mean 'batch_score.rows_per_part'?"),
        (["--set", "batch_score.gpus_per_worker=1", "--set", "batch_score.workers=null"], "no node of the cluster"),
    ],
)
def test_bad_usage_names_the_fix(batch: Batch, source: Path, arguments: list[str], message: str) -> None:
    code, found = batch("--input", str(source), *arguments)
    assert (code, found["exit_code"]) == (ExitCode.USAGE, 2)
    assert message in found["error"]
    assert not batch.output.exists(), "nothing was begun"


def test_input_and_output_that_cannot_be_used(batch: Batch, source: Path) -> None:
    assert "batch_score.input is not set: use --input" in batch()[1]["error"]
    assert "does not exist: correct batch_score.input" in batch("--input", "/nowhere/in.csv")[1]["error"]
    full = source.parent / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    for output, message in (
        (source.parent, "all files of batch_score.input lie in the output"),
        (full, "full exists and is not the output of a batch job: name a new or empty folder"),
        (full / "mine.txt", "mine.txt is a file: name a folder"),
    ):
        code, found = batch("--input", str(source), "--output", str(output))
        assert code == ExitCode.USAGE
        assert message in found["error"]


def test_an_mlflow_or_a_store_that_cannot_be_reached(
    batch: Batch, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = batch("--input", str(source), "--set", "tracking.uri=http://127.0.0.1:9")
    assert code == ExitCode.UNREACHABLE
    assert "http://127.0.0.1:9" in found["error"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    code, found = batch("--input", "s3://bucket/in.csv")
    assert code == ExitCode.UNREACHABLE, found
    assert "s3://bucket/in.csv cannot be reached" in found["error"]


def test_the_output_of_another_job_is_refused(batch: Batch, registry: Registry, source: Path) -> None:
    settings = load_settings(None, [text.removeprefix("--set=") for text in batch.arguments()[:-2]])
    settings.batch_score.input, settings.batch_score.output = [str(source)], str(batch.output)
    job = find_job(settings)
    job.output.begin(job.description)
    job.output.write_part("part-00000-0000000001-1", b"id,text\n", b"")
    code, found = batch("--input", str(source), "--dry-run")
    assert (code, found["rows"], found["rows_finished"]) == (ExitCode.OK, 2, 1)

    other = source.with_name("other.csv")
    other.write_text(source.read_text())
    for arguments, message in (
        (["--model", f"{NAME}/1"], f"scores with {NAME}@production, and this one with {NAME}/1"),
        (["--no-truncate"], "began with truncate True, and this is False: set it as it was, or name another --output"),
        (["--set", "batch_score.rows_per_part=5"], "began with rows_per_part 10, and this is 5"),
        (["--input", str(other)], f"began with other files: {other} was not there"),
    ):
        code, found = batch("--input", str(source), *arguments)
        assert code == ExitCode.USAGE
        assert message in found["error"]
    source.write_text("id,text\n1,changed\n")
    assert "in.csv has changed: name the files as they were" in batch("--input", str(source))[1]["error"]
    source.write_text("id,text\n1,good\n2,bad\n")
    registry.client.delete_registered_model_alias(NAME, "production")
    registry.client.delete_model_version(NAME, "1")
    assert "which is not in the registry any more" in batch("--input", str(source))[1]["error"]


def test_a_dry_run_tells_and_writes_nothing(batch: Batch, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = batch("--input", str(source), "--dry-run")
    assert code == ExitCode.OK
    expected = {"model_version": "1", "files": 1, "format": "csv", "rows": 2, "rows_exact": True, "rows_finished": 0}
    assert expected.items() <= found.items()
    assert json.dumps(found)
    assert not batch.output.exists()
