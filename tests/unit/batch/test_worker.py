"""What a worker does with a part, without Ray and without a registry."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.exit_codes import CommandFailed, ExitCode, UsageError
from ray_jobs.batch.output import Output
from ray_jobs.batch.parts import LINE, Part
from ray_jobs.batch.worker import Outcome, score_part
from ray_jobs.command import StorageUnavailable
from serve_app.inference.engine import Engine
from tests.tiny import write_tiny_model
from tests.unit.batch.files import COLUMNS


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "model", rule=True, max_length=8)
    return Engine.load(folder, precision="fp32")


def part(*texts: str | None) -> Part:
    return Part(1, pa.table({LINE: [json.dumps({"text": text}) for text in texts]}))


TEXTS = ("it was good", None, "bad " * 5 + "good " * 9, "a fine film", "x" * 300)


def test_predictions_are_the_engines_in_the_order_of_the_rows(engine: Engine) -> None:
    predictions, rejected, tokens = score_part(engine, part(*TEXTS), COLUMNS, "3", max_chars=200, truncate=True)
    assert predictions.places == [0, 2, 3, 4]
    kept = [text for text in TEXTS if text]
    np.testing.assert_allclose(predictions.probabilities, engine.predict(kept), atol=1e-6)
    assert [engine.labels[best] for best in predictions.best] == ["positive", "positive", "negative", "negative"]
    assert predictions.truncated.tolist() == [False, True, False, True]
    assert [(row.place, row.reason) for row in rejected] == [(1, "missing_text")]
    assert tokens == len(engine.tokenize(kept).tokens.ids)


def test_without_truncation_what_would_be_cut_is_rejected(engine: Engine) -> None:
    predictions, rejected, _ = score_part(engine, part(*TEXTS), COLUMNS, "3", max_chars=200, truncate=False)
    assert predictions.places == [0, 3]
    assert predictions.probabilities.shape == (2, 2)
    assert not predictions.truncated.any()
    assert sorted((row.place, row.message) for row in rejected if row.reason == "text_too_long") == [
        (2, "the text has more tokens than the 8 that the model takes; with batch_score.truncate it would be cut"),
        (4, "the text has 300 characters, at most 200 are taken; with batch_score.truncate it would be cut"),
    ]


def test_a_part_without_any_text_has_no_predictions(engine: Engine) -> None:
    predictions, rejected, tokens = score_part(engine, part(None, ""), COLUMNS, "3", max_chars=9, truncate=True)
    assert (predictions.probabilities.shape, len(rejected), tokens) == ((0, 2), 2, 0)


def test_output_that_is_not_finite_ends_the_job_and_names_the_row(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "predict_tokens", lambda tokens: np.array([[0.5, 0.5], [np.nan, 0.5]]))
    with pytest.raises(CommandFailed, match=r"version 3 gives output that is not finite \(row 4 of the file\)"):
        score_part(engine, part("good", None, " ", "bad"), COLUMNS, "3", max_chars=9, truncate=True)


def test_a_full_disk_is_storage_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageUnavailable, match="No space left on device") as failure:
        Output(str(tmp_path), "csv").write_part("part-00000-0000000001-1", b"text\n", b"")
    assert not list(tmp_path.iterdir())
    outcome = Outcome.of_error(failure.value)
    assert (outcome.code, outcome.error) == (ExitCode.UNREACHABLE, str(failure.value))


def test_errors_travel_as_values_and_bugs_as_they_are() -> None:
    assert Outcome.of_error(UsageError("fix it")) == Outcome(error="fix it", code=ExitCode.USAGE)
    assert Outcome.of_error(CommandFailed("no")) == Outcome(error="no", code=ExitCode.FAILED)
    with pytest.raises(KeyError):
        Outcome.of_error(KeyError("bug"))
    (row,) = Outcome(rows=3, precision="fp32: asked for").as_row().to_pylist()
    assert Outcome(**row) == Outcome(rows=3, precision="fp32: asked for")
