"""How many workers there are, and what the progress says."""

from __future__ import annotations

import pytest

from configs.loading import ConfigError
from configs.schema import Settings
from ray_jobs.batch.inputs import InputFile, RowCount
from ray_jobs.batch.plan import Pool, worker_pool
from ray_jobs.batch.progress import Progress
from ray_jobs.batch.worker import Outcome

CPU, GPU = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}
HEAD = {"CPU": 0.0}
FILE = [InputFile("/in.csv", "csv", 1000, "")]


@pytest.mark.parametrize(
    ("changes", "nodes", "rows", "expected"),
    [
        ({}, [HEAD, CPU, CPU], 100_000, Pool(8, 8)),
        ({"cpus_per_worker": 3}, [CPU, CPU], 100_000, Pool(2, 2)),
        ({"cpus_per_worker": 0.5}, [CPU], 100_000, Pool(8, 8)),
        ({"gpus_per_worker": 0.5}, [CPU, GPU], 100_000, Pool(4, 4)),
        ({"workers": 3}, [CPU], 100_000, Pool(3, 3)),
        ({"workers": 6}, [CPU], 100_000, Pool(4, 6)),
        ({"workers": 6}, [HEAD], 100_000, Pool(1, 6)),
        ({}, [CPU], 2500, Pool(3, 3)),
        ({}, [CPU], 0, Pool(1, 1)),
    ],
)
def test_workers_are_what_the_nodes_hold_and_the_rows_need(
    changes: dict[str, float], nodes: list[dict[str, float]], rows: int, expected: Pool
) -> None:
    settings = Settings.model_validate({"batch_score": changes})
    assert worker_pool(settings, FILE, rows, nodes) == expected


def test_long_texts_make_more_parts_than_their_rows_tell() -> None:
    large = [InputFile("/in.csv", "csv", 100_000_000, "")]
    assert worker_pool(Settings(), large, 900, [CPU]) == Pool(4, 4)


def test_a_worker_that_fits_nowhere_is_refused_with_the_arithmetic() -> None:
    settings = Settings.model_validate({"batch_score": {"gpus_per_worker": 1}})
    with pytest.raises(ConfigError, match=r"needs 1 CPUs and 1 GPUs, and no node.*its nodes have 4 CPUs and 0 GPUs"):
        worker_pool(settings, FILE, 10, [CPU])


def test_progress_says_a_line_for_the_first_part_and_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(RowCount(10_000, exact=False), 2000, lambda: now[0])
    for time in (20.0, 25.0, 31.0, 40.0):
        now[0] = time
        progress.add(Outcome(rows=500, rejected=1, precision="bf16: the processor has AMX"))
    assert capsys.readouterr().err.splitlines() == [
        "first part scored after 20 s, in bf16: the processor has AMX",
        "3,500 of about 10,000 rows (35 %), 48.4 rows/s, 3 rejected, 2m 14s left",
    ]
    assert Progress(RowCount(0, exact=True), 0).line().startswith("0 of 0 rows")
