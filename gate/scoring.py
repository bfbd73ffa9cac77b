"""Scores a saved model on a frozen test split, with the engine that serves it.

The same weights always give the same F1: rows are put into the order of their ids, and batches depend on their lengths
alone. A score is stored with everything that it depends on (``ScoreKey``) and reused only if all of it is equal, and if
it is what the predictions stored beside it come to.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet

from configs.exit_codes import UsageError
from gate.evaluation import SCORING_VERSION, Score, ScoreKey, evaluate, is_alike
from gate.safety import code_in
from gate.slices import slices_of
from serve_app.inference.digests import SLICE_PREFIX, split_digest
from serve_app.inference.engine import Engine
from serve_app.inference.metrics import F1Definition

logger = logging.getLogger(__name__)

# Fixed, whatever serving uses: another composition of batches may move a probability in its last bits.
_MAX_BATCH_TOKENS, _MAX_BATCH_TEXTS = 16_384, 64
_PROGRESS_SECONDS = 10.0


class ScoringError(ValueError):
    """A score that cannot be computed; the message says what was found, expected, and the fix."""


@dataclass(frozen=True)
class TestSplit:
    """A frozen test split in the order of its ids. ``labels``: int64 [texts], ids into ``label_names``.

    ``slices``: for each slice column of the data its value for every text.
    """

    __test__ = False  # its name makes pytest look

    ids: list[str]
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
    return TestSplit([ids[row] for row in order], [texts[row] for row in order], labels[order], names, found, ordered)


@dataclass(frozen=True)
class Scored:
    """A loaded model with its score and the probabilities [texts, classes] that it is made of, in the order of the
    split. ``new``: whether they were computed just now."""

    score: Score
    probabilities: np.ndarray
    engine: Engine
    new: bool


def score_model(
    folder: Path,
    split: TestSplit,
    *,
    precision: str,
    find: Callable[[ScoreKey, TestSplit], tuple[Score, np.ndarray] | None],
    definition: F1Definition | None = None,
    what: str = "the model",
) -> Scored:
    """The saved model in ``folder`` and its score, computed unless ``find`` knows it and the predictions.

    What ``find`` returns is evaluated anew: a score that contradicts its predictions is computed again. The folder is
    loaded and checked either way. ``definition``: the F1 that the score is compared under; a model with another one is
    refused. Raises ScoringError for whatever keeps this model from having a score.
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
    stored = find(key, split)
    score = _confirmed(*stored, engine, split, what) if stored is not None else None
    if stored is not None and score is not None:
        logger.info("%s: stored predictions reused, F1 %.4f", what, score.f1)
        return Scored(score, stored[1], engine, new=False)
    logger.info("%s: scoring %d texts in %s on %s (%s)", what, len(split.texts), engine.precision, engine.device_type,
                engine.precision_reason)  # fmt: skip
    return Scored(*_compute(engine, split, key, what), engine, new=True)


def _load(folder: Path, precision: str, what: str) -> Engine:
    unsafe = code_in(folder)
    if unsafe:
        raise ScoringError(f"{what} is not safetensors only: {'; '.join(unsafe[:5])}")
    try:
        return Engine.load(
            folder, precision=precision, max_batch_tokens=_MAX_BATCH_TOKENS, max_batch_texts=_MAX_BATCH_TEXTS
        )
    except UsageError:  # of the settings, not of this model
        raise
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
        return _evaluated(engine, split, key, probabilities, len(split.texts) / max(seconds, 1e-9)), probabilities
    except ValueError as error:
        raise ScoringError(f"{what} cannot be scored: {error}") from error


def _evaluated(
    engine: Engine, split: TestSplit, key: ScoreKey, probabilities: np.ndarray, texts_per_second: float
) -> Score:
    return evaluate(
        split.labels,
        probabilities,
        label_names=list(split.label_names),
        definition=engine.info.f1,
        slices=slices_of(split.texts, split.slices),
        key=key,
        temperature=engine.info.temperature,
        texts_per_second=texts_per_second,
    )


def _confirmed(stored: Score, probabilities: np.ndarray, engine: Engine, split: TestSplit, what: str) -> Score | None:
    """The score of stored ``probabilities``; None if they cannot be evaluated, or ``stored`` says something else."""
    try:
        score = _evaluated(engine, split, stored.key, probabilities, stored.texts_per_second)
    except ValueError as error:
        logger.warning("%s: the stored predictions cannot be evaluated, so it is scored again: %s", what, error)
        return None
    if is_alike(stored.model_dump(), score.model_dump()):
        return score
    logger.warning(
        "%s: the stored score (F1 %.6f) contradicts the predictions stored beside it (F1 %.6f). One of the two was "
        "changed, so neither is believed and it is scored again", what, stored.f1, score.f1,
    )  # fmt: skip
    return None


def _reporter(total: int, what: str) -> Callable[[int], None]:
    done, said = 0, time.monotonic()

    def report(texts: int) -> None:
        nonlocal done, said
        done += texts
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            logger.info("%s: scored %d of %d texts", what, done, total)

    return report
