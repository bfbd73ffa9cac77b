"""A worker: an engine, to which parts come and which writes files."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from configs.exit_codes import CommandFailed, ExitCode, Unreachable, UsageError
from configs.schema import Settings
from ray_jobs.batch.output import Output, part_name
from ray_jobs.batch.parts import Columns, Part
from ray_jobs.batch.predictions import Predictions, render
from ray_jobs.batch.rows import Rejection, rejected_lines, texts_of, too_long
from ray_jobs.command import StorageUnavailable
from ray_jobs.data.files import redacted
from serve_app.console import describe, exit_code_of
from serve_app.inference.folder import ModelFolderError
from serve_app.model_source import ModelCache, ModelVersion, RegistryAlias, load_verified

if TYPE_CHECKING:
    from serve_app.inference.engine import Engine

_CACHED_FOR = "batch scoring"  # as whose the cache keeps the copies, beside those of the aliases that are served


@dataclass(frozen=True)
class Work:
    """What all workers of a job know. ``alias``: the registry's, or "" for a version by number."""

    settings: Settings
    version: ModelVersion
    alias: str
    file_format: str

    @property
    def columns(self) -> Columns:
        """The names of the job's columns."""
        return Columns(self.settings.batch_score.text_column, self.settings.batch_score.prediction_name)


@dataclass(frozen=True)
class Outcome:
    """What became of a part: rows of it and rows rejected, tokens, and what it took; or ``error`` and the exit ``code``
    of the whole job. ``cpu_seconds``: of the worker's process, over all its threads."""

    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    precision: str = ""
    error: str = ""
    code: int = int(ExitCode.OK)

    @classmethod
    def of_error(cls, error: Exception) -> Outcome:
        """What ends the job. Raises ``error`` itself when it is a bug, of which one wants to see the traceback."""
        code = exit_code_of(error)
        if code == ExitCode.FAILED and not isinstance(error, CommandFailed):
            raise error
        return cls(error=describe(error), code=int(code))

    def as_row(self) -> pa.Table:
        """A table of one row, as it travels."""
        return pa.Table.from_pylist([asdict(self)])


def score_part(
    engine: Engine, part: Part, columns: Columns, version: str, *, max_chars: int, truncate: bool
) -> tuple[Predictions, list[Rejection], int]:
    """The predictions of a part, the rows without, and how many tokens the model read.

    Raises CommandFailed when the model gives NaN or infinity.
    """
    texts, rejected = texts_of(part, columns, max_chars=max_chars, truncate=truncate)
    tokenized = engine.tokenize([text.text for text in texts], truncate=True)
    cut = tokenized.truncated | np.array([text.cut for text in texts], dtype=bool)
    kept = np.arange(len(texts)) if truncate else np.flatnonzero(~cut)
    if not truncate:
        over = f"more tokens than the {engine.max_length} that the model takes"
        rejected += [too_long(texts[index].place, over) for index in np.flatnonzero(cut)]
    tokens = tokenized.tokens.select(kept)
    places = [texts[index].place for index in kept]
    probabilities = engine.predict_tokens(tokens)
    if not np.isfinite(probabilities).all():
        row = part.first_row + places[int(np.argmin(np.isfinite(probabilities).all(axis=1)))]
        raise CommandFailed(f"version {version} gives output that is not finite (row {row} of the file)")
    predictions = Predictions(places, engine.labels, probabilities, cut[kept], version)
    return predictions, rejected, len(tokens.ids)


class Scorer:
    """Scores parts and writes them. Made by Ray Data on every worker; the model is loaded for the first part."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._threads = max(1, int(work.settings.batch_score.cpus_per_worker))
        # The tokenizer's threads; its default is as many as the machine has cores, in each of the workers.
        os.environ["RAYON_NUM_THREADS"] = str(self._threads)
        self._engine: Engine | None = None
        self._output = Output(work.settings.batch_score.output or "", work.file_format)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's call: one row with a part, or with the error that its reader met; one row with the Outcome."""
        row: dict[str, Any] = batch.to_pylist()[0]
        if row["error"]:
            return Outcome(error=row["error"], code=row["code"]).as_row()
        try:
            return self._score(row["file"], row["url"], Part.from_bytes(row["part"])).as_row()
        except Exception as error:  # noqa: BLE001 - sorted there
            return Outcome.of_error(error).as_row()

    def _score(self, file: int, url: str, part: Part) -> Outcome:
        work, batch = self._work, self._work.settings.batch_score
        engine = self._engine = self._engine or self._load()
        started, cpu = time.perf_counter(), time.process_time()
        predictions, rejected, tokens = score_part(
            engine,
            part,
            work.columns,
            work.version.version,
            max_chars=work.settings.serving.max_text_chars,
            truncate=batch.truncate,
        )
        self._output.write_part(
            part_name(file, part.first_row, len(part)),
            render(part, predictions, work.file_format, batch.prediction_name),
            rejected_lines(part, rejected, redacted(url)),
        )
        return Outcome(
            rows=len(part),
            rejected=len(rejected),
            tokens=tokens,
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu,
            precision=f"{engine.precision}: {engine.precision_reason}",
        )

    def _load(self) -> Engine:
        settings, version = self._work.settings, self._work.version
        registry = RegistryAlias(settings.tracking, self._work.alias)
        cache = ModelCache(Path(settings.serving.cache_dir or ""), settings.tracking.uri or "", _CACHED_FOR)
        try:
            engine = load_verified(cache, version, registry.download, self._engine_of)
            cache.remember_good(replace(version, weights_digest=engine.weights_digest))
        except ModelFolderError as error:
            raise CommandFailed(f"{version.name} version {version.version} cannot be used: {error}") from error
        except Unreachable:
            raise
        except OSError as error:
            raise StorageUnavailable(f"{version.name} version {version.version} cannot be had: {error}") from error
        agreed = self._output.agree_on_precision(engine.precision)
        if agreed != engine.precision:
            raise UsageError(f"this worker computes in {engine.precision} ({engine.precision_reason}), and others of "
                             f"the job in {agreed}: set serving.precision to what all nodes have, such as fp32, and "
                             "begin anew, with another --output")  # fmt: skip
        return engine

    def _engine_of(self, folder: Path) -> Engine:
        from serve_app.inference.engine import Engine

        batch, serving = self._work.settings.batch_score, self._work.settings.serving
        return Engine.load(
            folder,
            precision=serving.precision,
            device="cuda" if batch.gpus_per_worker else "cpu",
            threads=self._threads,
            max_batch_tokens=batch.batch_tokens,
            max_batch_texts=serving.max_batch_texts,
        )
