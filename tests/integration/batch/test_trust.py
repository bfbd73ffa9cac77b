"""Nothing is marked as complete that is not what the job says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from ray_jobs import batch_score
from serve_app.mlflow_client import WEIGHTS_DIGEST
from tests.integration.batch.world import TEXTS, Batch
from tests.integration.serving.world import NAME, Registry


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three parts of ten rows."""
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "".join(f"{TEXTS[row % len(TEXTS)]}\n" for row in range(30)))
    return path


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen when the last part is scored and the job not yet marked as complete."""
    score_parts = batch_score.score_parts

    def arrange(happen: Callable[[], object]) -> None:
        def score(*arguments: object) -> object:
            progress = score_parts(*arguments)  # type: ignore[arg-type]
            happen()
            return progress

        monkeypatch.setattr(batch_score, "score_parts", score)

    return arrange


def test_a_part_that_is_gone_is_scored_again(
    batch: Batch, source: Path, afterwards: Callable[[Callable[[], object]], None]
) -> None:
    afterwards(lambda: batch.parts()[1].unlink())
    code, found = batch("--input", str(source))
    assert code == ExitCode.FAILED
    assert f"has 20 rows of 30 ({source} has a hole)" in found["error"]
    assert not (batch.output / "_SUCCESS").exists()
    afterwards(lambda: None)
    code, found = batch("--input", str(source))
    assert (code, found["computed_rows"], found["rows"]) == (ExitCode.OK, 10, 30), batch.told


def test_a_file_that_changed_meanwhile(
    batch: Batch, source: Path, afterwards: Callable[[Callable[[], object]], None]
) -> None:
    afterwards(lambda: source.write_text("text\nanother\n"))
    code, found = batch("--input", str(source))
    assert code == ExitCode.USAGE
    assert f"{source} has changed" in found["error"]
    assert not (batch.output / "_SUCCESS").exists()


def test_weights_that_the_gate_did_not_score(batch: Batch, registry: Registry, source: Path) -> None:
    registry.client.set_model_version_tag(NAME, "1", WEIGHTS_DIGEST, "0" * 64)
    code, found = batch("--input", str(source))
    assert code == ExitCode.FAILED
    assert "its files have been changed" in found["error"]
    assert not batch.parts()


def test_two_precisions_in_one_output(batch: Batch, source: Path) -> None:
    assert batch("--input", str(source))[0] == ExitCode.OK
    assert (batch.output / "_precision").read_text() == "fp32"
    # As the job would stand whose first worker has a processor with bf16.
    (batch.output / "_SUCCESS").unlink()
    (batch.output / "_precision").write_text("bf16")
    batch.parts()[0].unlink()
    code, found = batch("--input", str(source))
    assert code == ExitCode.USAGE
    assert "this worker computes in fp32" in found["error"]
    assert "others of the job in bf16" in found["error"]
