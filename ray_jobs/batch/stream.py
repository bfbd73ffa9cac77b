"""Ray Data's part of a batch job: files are read as streams of parts, and a pool of workers takes the parts.

Neither the rows of a file nor those of a part can be split between workers or joined with others on the way: a part
travels as one row. What waits for workers is bounded, whatever the size of the input: Ray Data stops the readers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from configs.exit_codes import CommandFailed
from ray_jobs.batch.inputs import InputFile
from ray_jobs.batch.parts import PART_BYTES, read_parts
from ray_jobs.batch.plan import Pool
from ray_jobs.batch.worker import Outcome, Scorer, Work

_READERS_SHARE = 0.1  # of every core a reader's; the rest is the worker's, so that nobody waits for a whole core
_MOST_READ_TASKS = 1000
_WAITING_PARTS = 4  # for each worker at most; what they take is bounded by this many parts of the largest size
_TRIES = 4  # of a part whose worker was lost; one that kills every worker must not go on for ever


class _Parts(Datasource):
    """The unfinished parts of the files. ``finished``: file -> first row -> rows."""

    def __init__(self, files: Sequence[InputFile], finished: Mapping[int, Mapping[int, int]], work: Work) -> None:
        super().__init__()
        self._files, self._finished, self._work = list(enumerate(files)), finished, work

    def estimate_inmemory_data_size(self) -> None:
        """Unknown."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One for each of ``parallelism`` shares of the files."""
        return [self._task(self._files[start::parallelism]) for start in range(parallelism)]

    def _task(self, share: list[tuple[int, InputFile]]) -> ReadTask:
        finished = {number: self._finished.get(number, {}) for number, _ in share}
        columns, rows_per_part = self._work.columns, self._work.settings.batch_score.rows_per_part

        def read() -> Iterator[pa.Table]:
            for number, file in share:
                row = {"file": number, "url": file.url, "part": b"", "error": "", "code": 0}
                try:
                    for part in read_parts(file, columns, rows_per_part, finished[number]):
                        yield pa.Table.from_pylist([{**row, "part": part.to_bytes()}], schema=_ROW)
                except Exception as error:  # noqa: BLE001 - sorted there
                    outcome = Outcome.of_error(error)
                    yield pa.Table.from_pylist([{**row, "error": outcome.error, "code": outcome.code}], schema=_ROW)

        return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))


_ROW = pa.schema(
    [
        ("file", pa.int64()),
        ("url", pa.string()),
        ("part", pa.large_binary()),
        ("error", pa.string()),
        ("code", pa.int64()),
    ]
)


def score(
    work: Work, files: Sequence[InputFile], finished: Mapping[int, Mapping[int, int]], pool: Pool
) -> Generator[Outcome]:
    """What became of each unfinished part, as soon as it is known. Needs a connection to Ray.

    A part whose worker or node is lost is computed again by another. Whoever stops taking outcomes ends the work.
    """
    batch = work.settings.batch_score
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # bytes: every row, that is every part, is a block of its own
    context.execution_no_progress_timeout_s = -1  # a cluster that has to grow may take its time
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=_WAITING_PARTS * PART_BYTES * (1 + pool.most)
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that there are no bars
    with DataContext.current(context), warnings.catch_warnings():
        # Of max_task_retries, for which Ray 2.60 has no other place.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        parts = ray.data.read_datasource(
            _Parts(files, finished, work),
            override_num_blocks=min(len(files), _MOST_READ_TASKS),
            num_cpus=_READERS_SHARE,
        )
        outcomes = parts.map_batches(
            Scorer,
            fn_constructor_args=(work,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=pool.now, max_size=pool.most, max_tasks_in_flight_per_actor=2),
            num_cpus=batch.cpus_per_worker * (1 - _READERS_SHARE),
            num_gpus=batch.gpus_per_worker or None,
            ray_remote_args_fn=lambda: {"max_task_retries": _TRIES - 1},
        )
    try:
        for row in outcomes.iter_rows():
            yield Outcome(**row)
    except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
        raise CommandFailed(f"a part was lost with its worker {_TRIES} times, or a worker with its memory: "
                            f"{str(error).splitlines()[0]}; lower batch_score.rows_per_part, or raise "
                            "batch_score.cpus_per_worker for fewer workers on a node") from error  # fmt: skip
