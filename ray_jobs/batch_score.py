"""Scores files with a registered model: every row comes out once, with its prediction, or in a side file with a reason.

    python -m ray_jobs.batch_score --input URL --output URL [--model NAME@ALIAS] [--dry-run]

A job that was stopped goes on where it was when it is started again with the same arguments, by the model version that
it began with.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

from configs.exit_codes import CommandFailed, ExitCode, Unreachable, UsageError
from configs.loading import load_settings
from configs.schema import Settings
from ray_jobs.batch.inputs import RowCount, count_rows
from ray_jobs.batch.parts import first_missing_row
from ray_jobs.batch.plan import (
    Job,
    Pool,
    described,
    dry_run,
    find_job,
    input_files,
    refuse_another_job,
    worker_pool,
)
from ray_jobs.batch.progress import Progress
from ray_jobs.cluster import connected, living_nodes, look_for_cluster
from ray_jobs.command import job_parser, say
from serve_app.console import run_command

_ERRORS: dict[int, type[Exception]] = {ExitCode.USAGE: UsageError, ExitCode.UNREACHABLE: Unreachable}


def run_batch(settings: Settings) -> dict[str, Any]:
    """Scores what is not scored yet, and returns the job's document.

    Raises what ``find_job`` and ``worker_pool`` do, Unreachable, and for what a worker met UsageError or
    CommandFailed.
    """
    started = time.monotonic()
    look_for_cluster()
    job = find_job(settings)
    version, where = job.work.version, job.output.name
    if job.result is not None:
        say(f"{where} is complete: nothing was computed")
        return {**job.result, "computed_rows": 0, "rows_per_second": None, "seconds": 0.0}
    expected = count_rows(job.files)
    with connected(settings.home) as cluster:
        say(f"Ray at {cluster.address}" + (f", dashboard {cluster.dashboard_url}" if cluster.dashboard_url else ""))
        pool = worker_pool(settings, job.files, max(0, expected.rows - job.rows_finished), living_nodes())
        began = job.output.begin(job.description)
        if began["version"] != job.description["version"]:
            other = began["version"]["version"]
            raise UsageError(f"another start of the job in {where} was faster, with version {other}: start this one "
                             "again, and it goes on with that one")  # fmt: skip
        refuse_another_job(began, job.description, job.output)
        say(f"{version.name} version {version.version}: {len(job.files):,} files, {pool.now} workers"
            + (f"; {job.rows_finished:,} rows are finished" if job.finished else ""))  # fmt: skip
        progress = score_parts(job, pool, expected)
    require_whole(job, progress)
    refuse_another_job(job.description, {**job.description, "files": described(input_files(settings))}, job.output)
    result = finish(job, progress)
    seconds = time.monotonic() - started
    return {
        **result,
        "computed_rows": progress.rows,
        "rows_per_second": round(progress.rows_per_second, 2),
        "seconds": round(seconds, 1),
    }


def score_parts(job: Job, pool: Pool, expected: RowCount) -> Progress:
    """Has all unfinished parts scored. Raises what the first worker that could not go on met."""
    from ray_jobs.batch.stream import score  # Ray Data, for which --help need not wait

    progress = Progress(expected, job.rows_finished)
    with contextlib.closing(score(job.work, job.files, job.finished, pool)) as outcomes:
        for outcome in outcomes:
            if outcome.error:
                raise _ERRORS.get(outcome.code, CommandFailed)(outcome.error)
            progress.add(outcome)
    say(progress.line())
    return progress


def require_whole(job: Job, progress: Progress) -> None:
    """CommandFailed unless the output has every row of which a worker said that it is there."""
    finished = job.output.finished()
    holes = [job.files[number].name for number, parts in finished.items()
             if first_missing_row(parts) != sum(parts.values()) + 1]  # fmt: skip
    expected, found = job.rows_finished + progress.rows, sum(sum(parts.values()) for parts in finished.values())
    if holes or found != expected:
        where = f" ({holes[0]} has a hole)" if holes else ""
        raise CommandFailed(f"{job.output.name} has {found:,} rows of {expected:,}{where}, as if somebody had removed "
                            "parts meanwhile: start the job again, and it scores what is missing")  # fmt: skip


def finish(job: Job, progress: Progress) -> dict[str, Any]:
    """Counts what is in the output, marks it as complete and returns the result."""
    rejected = job.output.rejected()
    rows = sum(sum(parts.values()) for parts in job.output.finished().values())
    result = {
        "output": job.output.name,
        "model_name": job.work.version.name,
        "model_version": job.work.version.version,
        "run_id": job.work.version.run_id,
        "files": len(job.files),
        "rows": rows,
        "scored": rows - rejected.total(),
        "rejected": rejected.total(),
        "rejected_by_reason": dict(rejected),
        "precision": progress.precision.partition(":")[0] or None,
    }
    job.output.complete(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = job_parser("python -m ray_jobs.batch_score", (__doc__ or "").split("\n")[0], config_required=False)
    # Each of these stands for a setting of batch_score, and goes before the same one in the config.
    parser.add_argument(
        "--input", action="append", metavar="URL", help="file, folder or pattern with *; may be given several times"
    )
    parser.add_argument("--output", metavar="URL", help="folder for the predictions; the same one goes on with a job")
    parser.add_argument("--model", metavar="NAME@ALIAS", help="or NAME/VERSION; default: the model that is served")
    parser.add_argument("--text-column", metavar="NAME", help="column or JSON key with the text; default: text")
    parser.add_argument("--no-truncate", action="store_true", help="reject texts that the model would see cut")
    parser.add_argument("--workers", type=int, metavar="N", help="default: what the cluster holds")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be scored by what, and do nothing")
    args = parser.parse_args(argv)
    names = ("input", "output", "model", "text_column", "workers")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.no_truncate:
        given["truncate"] = False
    overrides = [*args.overrides, *(f"batch_score.{name}={json.dumps(value)}" for name, value in given.items())]

    def work() -> tuple[dict[str, Any], list[str], int]:
        settings = load_settings(args.config, overrides)
        if args.dry_run:
            return *dry_run(settings), ExitCode.OK
        found = run_batch(settings)
        line = f"{found['scored']:,} of {found['rows']:,} rows scored by {found['model_name']} version " \
               f"{found['model_version']}, {found['rejected']:,} rejected"  # fmt: skip
        return found, [line, f"output {found['output']}"], ExitCode.OK

    return run_command(work, as_json=args.json, json_file=args.json_file)


if __name__ == "__main__":
    sys.exit(main())
