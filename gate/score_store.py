"""The scores that runs keep, so that nothing is computed twice: as JSON, with every prediction as Parquet."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow
import pyarrow.parquet

from gate.evaluation import Score, ScoreKey
from gate.pictures import confusion_figure, precision_recall_figure, reliability_figure
from gate.scoring import TestSplit
from serve_app.inference.metrics import F1Definition
from serve_app.mlflow_client import is_unreachable
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SCORE_FILE: Final = "score.json"
PREDICTIONS_FILE: Final = "predictions.parquet"
_PROBABILITY: Final = "probability: "


class ScoreStore:
    """The scores that a run keeps. ``run_id`` None: nothing is found and nothing kept."""

    def __init__(self, client: MlflowClient, run_id: str | None) -> None:
        self._client, self._run_id = client, run_id

    def find(self, key: ScoreKey, split: TestSplit) -> tuple[Score, np.ndarray] | None:
        """The stored score with exactly this key, and the probabilities beside it, neither believed yet: whoever may
        write to the run may have changed them. One that cannot be read is computed again, so None."""
        if self._run_id is None:
            return None
        try:
            kept = {file.path for file in self._client.list_artifacts(self._run_id, key.folder)}
            if not kept >= {f"{key.folder}/{SCORE_FILE}", f"{key.folder}/{PREDICTIONS_FILE}"}:
                return None
            with tempfile.TemporaryDirectory(prefix="trialgate-score-") as folder:
                path = Path(self._client.download_artifacts(self._run_id, key.folder, folder))
                score = Score.model_validate_json((path / SCORE_FILE).read_bytes())
                probabilities = read_predictions(path / PREDICTIONS_FILE, split)
        except (ValueError, OSError, KeyError, pyarrow.ArrowException) as error:
            logger.warning("the stored score %s of run %s cannot be used: %s", key.folder, self._run_id, error)
            return None
        except Exception as error:  # MLflow's own errors, whose type depends on the kind of store
            if is_unreachable(error):
                raise
            logger.warning("the stored scores of run %s cannot be read: %s", self._run_id, error)
            return None
        return (score, probabilities) if score.key == key else None

    def keep(self, score: Score, split: TestSplit, probabilities: np.ndarray) -> None:
        """Stores the score and its predictions. That a run is gone, or this user may not write to it, is no reason to
        fail: the score is computed again the next time."""
        if self._run_id is None:
            return
        with self._warned("the score"), tempfile.TemporaryDirectory(prefix="trialgate-score-") as folder:
            (Path(folder) / SCORE_FILE).write_text(score.model_dump_json(indent=2), encoding="utf-8")
            write_predictions(Path(folder) / PREDICTIONS_FILE, split, score.labels, probabilities)
            self._client.log_artifacts(self._run_id, folder, score.key.folder)

    def show(self, score: Score, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Puts metrics and pictures of a score on the run that it belongs to. Fails as little as ``keep``."""
        if self._run_id is None:
            return
        from mlflow.entities import Metric

        with self._warned("metrics and pictures of the score"):
            now = int(time.time() * 1000)
            self._client.log_batch(self._run_id, [Metric(k, v, now, 0) for k, v in score.metrics().items()])
            title = f"test split, {score.texts} texts, F1 {score.f1:.4f}"
            positive = F1Definition.from_key(score.key.f1_definition).positive_label
            pictures: dict[str, Any] = {
                "confusion_matrix.png": confusion_figure(score.confusion, score.labels, title),
                "precision_recall.png": precision_recall_figure(labels, probabilities, score.labels, positive, title),
                "reliability.png": reliability_figure(score.calibration, f"{title}, ECE {score.ece:.4f}"),
            }
            for name, figure in pictures.items():
                self._client.log_figure(self._run_id, figure, name)

    @contextlib.contextmanager
    def _warned(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # as in find
            if is_unreachable(error):
                raise
            logger.warning("%s could not be stored on run %s: %s", what, self._run_id, refusal(error) or error)


def write_predictions(path: Path, split: TestSplit, label_names: list[str], probabilities: np.ndarray) -> None:
    """Writes what a model says of every text: columns ``id``, ``label``, ``prediction`` (class names) and the
    probability of each class, float32. Texts are known by their ids only."""
    names = np.asarray(label_names, dtype=object)
    columns = {"id": split.ids, "label": names[split.labels], "prediction": names[probabilities.argmax(axis=1)]}
    columns |= {f"{_PROBABILITY}{name}": probabilities[:, place] for place, name in enumerate(label_names)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def read_predictions(path: Path, split: TestSplit) -> np.ndarray:
    """The probabilities, float32 [texts, classes], in the order of ``split``. ValueError if they are of other texts."""
    table = pyarrow.parquet.read_table(path)
    if table.column("id").to_pylist() != split.ids:
        raise ValueError(f"{path.name} has the predictions of other texts")
    columns = [table.column(f"{_PROBABILITY}{name}").to_numpy() for name in split.label_names]
    return np.stack(columns, axis=1).astype(np.float32)
