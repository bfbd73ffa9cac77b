"""Scores a saved model on a frozen test split, with the engine that serves it.

The same weights always give the same F1: rows are put into the order of their ids, and batches depend on their lengths
alone. A score is stored with everything that it depends on (``ScoreKey``) and reused only if all of it is equal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from gate.pictures import confusion_figure, precision_recall_figure
from serve_app.inference.digests import SLICE_PREFIX, split_digest
from serve_app.inference.engine import Engine
from serve_app.inference.metrics import F1Definition, classification_scores
from serve_app.mlflow_client import is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# Raise it whenever a change here or in the engine can change a score: stored ones are then computed again.
SCORING_VERSION = "3"
# Fixed, whatever serving uses: another composition of batches may move a probability in its last bits.
_MAX_BATCH_TOKENS, _MAX_BATCH_TEXTS = 16_384, 64
# Formats that run code when they are opened, or are code. Nothing like it gets into the registry.
_UNSAFE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".py"}
_PROGRESS_SECONDS = 10.0


class ScoringError(ValueError):
    """A score that cannot be computed; the message says what was found, expected, and the fix."""


class ScoreKey(BaseModel):
    """Everything that a score depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test_digest: str
    weights_digest: str
    scoring_version: str
    precision: str
    device_type: str
    f1_definition: str

    @property
    def file(self) -> str:
        """Where a run keeps the score with this key."""
        content = json.dumps(self.model_dump(), sort_keys=True).encode()
        return f"scores/{hashlib.sha256(content).hexdigest()[:32]}.json"


class ClassScore(BaseModel):
    """Scores of one class, 0 to 1; ``support``: texts that truly are of the class."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    precision: float
    recall: float
    f1: float
    support: int


class Score(BaseModel):
    """One model on one test split. ``confusion``: rows are true classes; ``log_loss``: nats per text."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: ScoreKey
    labels: list[str]
    f1: float
    accuracy: float
    log_loss: float
    per_class: dict[str, ClassScore]
    confusion: list[list[int]]
    texts: int
    texts_per_second: float

    def metrics(self) -> dict[str, float]:
        """The numbers under the names that they have on the candidate's run."""
        values = {
            "test_f1": self.f1,
            "test_accuracy": self.accuracy,
            "test_log_loss": self.log_loss,
            "test_texts": float(self.texts),
            "test_texts_per_second": self.texts_per_second,
        }
        for place, (name, scores) in enumerate(self.per_class.items()):
            # MLflow takes few characters in a metric's name, and class names may be anything.
            safe = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:100].strip() or str(place)
            values[f"test_precision_{safe}"] = scores.precision
            values[f"test_recall_{safe}"] = scores.recall
        return values


@dataclass(frozen=True)
class TestSplit:
    """A frozen test split in the order of its ids. ``labels``: int64 [texts], ids into ``label_names``.

    ``slices``: for each slice column of the data its value for every text.
    """

    __test__ = False  # its name makes pytest look

    texts: list[str]
    labels: np.ndarray
    label_names: tuple[str, ...]
    digest: str
    slices: dict[str, list[str]] = field(default_factory=dict)


def read_test_split(path: Path, expected_digest: str | None) -> TestSplit:
    """Reads ``test.parquet`` and proves that its content has the digest that it was frozen under."""
    try:
        table = pyarrow.parquet.read_table(path)
        description = json.loads((table.schema.metadata or {})[b"trialgate"])
        names = tuple(str(name) for name in description["labels"])
        ids, texts = table.column("id").to_pylist(), table.column("text").to_pylist()
        labels = np.asarray(table.column("label").to_pylist(), dtype=np.int64)
        slices = {
            column.removeprefix(SLICE_PREFIX): table.column(column).to_pylist()
            for column in table.column_names
            if column.startswith(SLICE_PREFIX)
        }
        found = split_digest(ids, texts, labels, names, slices)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, pyarrow.ArrowException) as error:
        raise ScoringError(f"the frozen test split cannot be read: {error!r}") from error
    frozen = {"recorded in the file": description.get("digest"), "recorded on the run": expected_digest}
    for where, digest in frozen.items():
        if digest is not None and digest != found:
            raise ScoringError(
                f"the frozen test split was changed: its content has digest {found[:12]}, "
                f"{where} is {digest[:12]}; run the search again"
            )
    order = sorted(range(len(ids)), key=lambda row: (ids[row], texts[row]))
    ordered = {column: [values[row] for row in order] for column, values in slices.items()}
    return TestSplit([texts[row] for row in order], labels[order], names, found, ordered)


def score_model(
    folder: Path,
    split: TestSplit,
    *,
    precision: str,
    find: Callable[[ScoreKey], Score | None],
    definition: F1Definition | None = None,
    what: str = "the model",
) -> tuple[Score, np.ndarray | None]:
    """The score of the saved model in ``folder``, and its probabilities [texts, classes] unless ``find`` knew it.

    The folder is loaded and checked either way. ``definition``: the F1 that the score is compared under; a model with
    another one is refused. Raises ScoringError for whatever keeps this model from having a score.
    """
    engine = _load(folder, precision, what)
    if definition is not None and engine.info.f1 != definition:
        raise ScoringError(
            f"{what} was trained for F1 '{engine.info.f1.key}', not '{definition.key}': "
            "two definitions of F1 are never compared"
        )
    if set(engine.labels) != set(split.label_names):
        raise ScoringError(
            f"{what} has the labels {sorted(engine.labels)}, the test split has {sorted(split.label_names)}"
        )
    key = ScoreKey(
        test_digest=split.digest,
        weights_digest=engine.weights_digest,
        scoring_version=SCORING_VERSION,
        precision=engine.precision,
        device_type=engine.device_type,
        f1_definition=engine.info.f1.key,
    )
    stored = find(key)
    if stored is not None:
        logger.info("%s: stored score reused, F1 %.4f", what, stored.f1)
        return stored, None
    logger.info("%s: scoring %d texts in %s on %s (%s)", what, len(split.texts), engine.precision, engine.device_type,
                engine.precision_reason)  # fmt: skip
    return _compute(engine, split, key, what)


def _load(folder: Path, precision: str, what: str) -> Engine:
    unsafe = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in _UNSAFE)
    if unsafe:
        raise ScoringError(f"{what} is not safetensors only: {', '.join(unsafe[:5])} may run code when opened")
    try:
        return Engine.load(
            folder, precision=precision, max_batch_tokens=_MAX_BATCH_TOKENS, max_batch_texts=_MAX_BATCH_TEXTS
        )
    # A damaged folder fails in any library on the way, each with errors of its own (tokenizers: plain Exception).
    except Exception as error:
        message = str(error).replace(f"{folder}/", "").replace(str(folder), "the folder")
        raise ScoringError(f"{what} does not load: {message or repr(error)}") from error


def _compute(engine: Engine, split: TestSplit, key: ScoreKey, what: str) -> tuple[Score, np.ndarray]:
    start = time.perf_counter()
    tokens = engine.tokenize(split.texts).tokens
    probabilities = engine.predict_tokens(tokens, progress=_reporter(len(tokens), what))
    seconds = time.perf_counter() - start
    # The split's classes may stand in another order than the model's: the name decides.
    probabilities = probabilities[:, [engine.labels.index(name) for name in split.label_names]]
    try:
        scores = classification_scores(split.labels, probabilities, split.label_names, engine.info.f1)
        score = Score(key=key, labels=list(split.label_names), texts=len(split.texts),
                      texts_per_second=len(split.texts) / max(seconds, 1e-9), **scores)  # fmt: skip
    except ValueError as error:
        raise ScoringError(f"{what} cannot be scored: {error}") from error
    return score, probabilities


def _reporter(total: int, what: str) -> Callable[[int], None]:
    done, said = 0, time.monotonic()

    def report(texts: int) -> None:
        nonlocal done, said
        done += texts
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            logger.info("%s: scored %d of %d texts", what, done, total)

    return report


class ScoreStore:
    """The scores that a run keeps. ``run_id`` None: nothing is found and nothing kept."""

    def __init__(self, client: MlflowClient, run_id: str | None) -> None:
        self._client, self._run_id = client, run_id

    def find(self, key: ScoreKey) -> Score | None:
        """The stored score with exactly this key. One that cannot be used is computed again, so None."""
        if self._run_id is None:
            return None
        try:
            files = self._client.list_artifacts(self._run_id, "scores")
            if key.file not in [file.path for file in files]:
                return None
            with tempfile.TemporaryDirectory(prefix="trialgate-score-") as folder:
                path = Path(self._client.download_artifacts(self._run_id, key.file, folder))
                score = Score.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            logger.warning("the stored score %s of run %s cannot be used: %s", key.file, self._run_id, error)
            return None
        except Exception as error:  # MLflow's own errors, whose type depends on the kind of store
            if is_unreachable(error):
                raise
            logger.warning("the stored scores of run %s cannot be read: %s", self._run_id, error)
            return None
        return score if score.key == key else None

    def keep(self, score: Score) -> None:
        """Stores the score itself. A run that is gone is no reason to fail: the score is computed the next time."""
        if self._run_id is None:
            return
        try:
            self._client.log_text(self._run_id, score.model_dump_json(indent=2), score.key.file)
        except Exception as error:  # as in find
            if is_unreachable(error):
                raise
            logger.warning("the score could not be stored on run %s: %s", self._run_id, error)

    def show(self, score: Score, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Puts metrics and pictures of a score on the run that it belongs to."""
        if self._run_id is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(k, v, now, 0) for k, v in score.metrics().items()])
        title = f"test split, {score.texts} texts, F1 {score.f1:.4f}"
        positive = F1Definition.from_key(score.key.f1_definition).positive_label
        pictures: dict[str, Any] = {
            "confusion_matrix.png": confusion_figure(score.confusion, score.labels, title),
            "precision_recall.png": precision_recall_figure(labels, probabilities, score.labels, positive, title),
        }
        for name, figure in pictures.items():
            self._client.log_figure(self._run_id, figure, name)
