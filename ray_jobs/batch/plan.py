"""What a batch job is about to do: checked before anything is written, and with ``--dry-run`` told instead of done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec

from configs.exit_codes import UsageError
from configs.loading import ConfigError
from configs.schema import Settings
from ray_jobs.batch.inputs import InputFile, check_columns, column_names, count_rows, find_files
from ray_jobs.batch.output import Output
from ray_jobs.batch.parts import PART_BYTES
from ray_jobs.batch.registered import ModelChoice, find_version
from ray_jobs.batch.worker import Work
from ray_jobs.cluster import connected, living_nodes, local_resources, slots, starts_locally
from ray_jobs.command import say
from ray_jobs.data.files import redacted
from ray_jobs.data.rows import DataError
from serve_app import mlflow_client
from serve_app.model_source import ModelVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What a job that goes on must share with its beginning, beside its files and its model.
_FIXED = ("text_column", "truncate", "prediction_name", "rows_per_part", "max_batch_tokens")


@dataclass(frozen=True)
class Pool:
    """Workers at the start, and at most."""

    now: int
    most: int


@dataclass(frozen=True)
class Job:
    """A job that may begin or go on.

    ``description``: what its output remembers it by. ``finished``: file -> first row -> rows. ``result``: of a job that
    is done.
    """

    work: Work
    files: list[InputFile]
    output: Output
    description: dict[str, Any]
    finished: dict[int, dict[int, int]]
    result: dict[str, Any] | None

    @property
    def rows_finished(self) -> int:
        """Rows in finished parts."""
        return sum(sum(parts.values()) for parts in self.finished.values())


def find_job(settings: Settings) -> Job:
    """The job that the settings describe. Writes nothing.

    Raises ConfigError, DataError, UsageError, StorageUnavailable, TrackingUnavailable.
    """
    batch, serving = settings.batch_score, settings.serving
    if not batch.input or batch.output is None:
        missing = "output" if batch.input else "input"
        raise ConfigError(f"batch_score.{missing} is not set: use --{missing} with a path or a URL")
    files = input_files(settings)
    if names := column_names(files[0]):
        check_columns(names, batch.text_column, batch.prediction_name, files[0].name)
    output, choice = Output(batch.output, files[0].format), ModelChoice.of(settings)
    began, client = output.job(), mlflow_client.connect(settings.tracking)
    version = find_version(client, choice) if began is None else _version_of(began, client, choice, output)
    values = {name: getattr(batch, name) for name in _FIXED}
    description = {
        "model": str(choice),
        "version": _identity(version),
        "settings": values
        | {"precision": serving.precision, "max_text_chars": serving.max_text_chars, "part_bytes": PART_BYTES},
        "files": described(files),
    }
    if began is not None:
        refuse_another_job(began, description, output)
    return Job(
        work=Work(settings, version, choice.alias, files[0].format),
        files=files,
        output=output,
        description=description,
        finished={} if began is None else output.finished(),
        result=None if began is None else output.result(),
    )


def input_files(settings: Settings) -> list[InputFile]:
    """The files to score, as they are now. Raises DataError, UsageError, StorageUnavailable."""
    return _outside(find_files(settings.batch_score.input), settings.batch_score.output or "")


def described(files: Sequence[InputFile]) -> list[list[str | int]]:
    """What a job remembers its files by: each one's name, size and stamp."""
    return [[file.name, file.size, file.stamp] for file in files]


def worker_pool(settings: Settings, files: list[InputFile], rows_left: int, nodes: list[dict[str, float]]) -> Pool:
    """How many workers there will be on ``nodes`` (total resources of each). Raises ConfigError when none fits."""
    batch = settings.batch_score
    fitting = sum(slots(node, batch.cpus_per_worker, batch.gpus_per_worker) for node in nodes)
    if not fitting and batch.workers is None:
        found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            f"a worker needs {batch.cpus_per_worker:g} CPUs and {batch.gpus_per_worker:g} GPUs, and no node of the "
            f"cluster has them: its nodes have {found}. Lower batch_score.cpus_per_worker or gpus_per_worker, or set "
            "batch_score.workers to have an autoscaling cluster grow"
        )
    parts = max(rows_left / batch.rows_per_part, sum(file.size for file in files) / PART_BYTES)
    most = min(batch.workers or fitting, max(1, math.ceil(parts)))
    return Pool(now=max(1, min(most, fitting)), most=most)


def dry_run(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """What the job would do, as a JSON document and in lines for people. Starts no Ray and writes nothing.

    Raises what ``find_job`` and ``worker_pool`` do.
    """
    job = find_job(settings)
    batch, version, rows = settings.batch_score, job.work.version, count_rows(job.files)
    left = max(0, rows.rows - job.rows_finished)
    pool = worker_pool(settings, job.files, left, _nodes(settings))
    size = sum(file.size for file in job.files)
    found = {
        "dry_run": True,
        "output": job.output.name,
        "model_name": version.name,
        "model_version": version.version,
        "files": len(job.files),
        "format": job.work.file_format,
        "bytes": size,
        "rows": rows.rows,
        "rows_exact": rows.exact,
        "rows_finished": job.rows_finished,
        "complete": job.result is not None,
        "workers": pool.now,
    }
    about = "" if rows.exact else "about "
    lines = [
        f"{len(job.files):,} {job.work.file_format} files, {size / 1e6:,.1f} MB, {about}{rows.rows:,} rows, "
        f"the first is {job.files[0].name}",
        f"  by {version.name} version {version.version} (run {version.run_id}, F1 at the gate {version.f1})",
        f"  into {redacted(batch.output or '')}" + (f": {job.rows_finished:,} rows are there" if job.finished else ""),
        f"  {pool.now} workers of {batch.cpus_per_worker:g} CPUs and {batch.gpus_per_worker:g} GPUs, parts of at most "
        f"{batch.rows_per_part:,} rows",
        "dry run: nothing was computed and nothing written",
    ]
    return found, lines


def _nodes(settings: Settings) -> list[dict[str, float]]:
    if starts_locally():
        return [local_resources()]
    with connected(settings.home):
        return living_nodes()


def _outside(files: list[InputFile], output: str) -> list[InputFile]:
    """The files that do not lie in the output, which may be a folder inside that of the input."""
    try:
        folder = fsspec.core.url_to_fs(output)[1].rstrip("/") + "/"
    except (ImportError, ValueError) as error:
        raise UsageError(f"batch_score.output {redacted(output)}: {error}") from error
    kept = [file for file in files if not fsspec.core.url_to_fs(file.url)[1].startswith(folder)]
    if not kept:
        raise DataError(f"all files of batch_score.input lie in the output {redacted(output)}: name another --output")
    return kept


def _version_of(began: dict[str, Any], client: MlflowClient, choice: ModelChoice, output: Output) -> ModelVersion:
    """The version that the job began with, which must still be in the registry."""
    where = f"the job in {output.name}"
    if began["model"] != str(choice):
        raise UsageError(f"{where} scores with {began['model']}, and this one with {choice}: name the same "
                         "--model, or another --output")  # fmt: skip
    version = began["version"]
    now = _found(client, ModelChoice(version["name"], "", version["version"]))
    if now is None or _identity(now) != version:
        raise UsageError(f"{where} began with version {version['version']} of {version['name']}, which is not in the "
                         "registry any more: begin anew, with another --output")  # fmt: skip
    if choice.alias and (current := _found(client, choice)) != now:
        moved = f"is version {current.version} now" if current else "is gone"
        say(f"{where} began with version {now.version}, and goes on with it; {choice} {moved}")
    return now


def _found(client: MlflowClient, choice: ModelChoice) -> ModelVersion | None:
    try:
        return find_version(client, choice)
    except UsageError:
        return None


def _identity(version: ModelVersion) -> dict[str, Any]:
    return {"name": version.name, "version": version.version, "source": version.source}


def refuse_another_job(began: dict[str, Any], description: dict[str, Any], output: Output) -> None:
    """UsageError when the job of ``description`` is not the one that ``began`` in the output."""
    where = f"the job in {output.name}"
    for name, value in description["settings"].items():
        before = began["settings"].get(name)
        if before != value:
            raise UsageError(f"{where} began with {name} {before}, and this is {value}: set it as it was, or name "
                             "another --output")  # fmt: skip
    before, now = ({file[0]: file for file in files} for files in (began["files"], description["files"]))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed or list(before) != list(now):
        what = f"{changed[0]} {_change(changed[0], before, now)}" if changed else "the files come in another order"
        raise UsageError(f"{where} began with other files: {what}: name the files as they were, or another --output")


def _change(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    if name not in before:
        return "was not there"
    return "has changed" if name in now else "is not there any more"
