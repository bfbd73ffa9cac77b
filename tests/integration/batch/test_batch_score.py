"""Batch scoring on a real Ray, with a real registry and a tiny real model that says "positive" where "good" stands."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from configs.exit_codes import ExitCode
from tests.conftest import RayCluster
from tests.integration.batch.world import TEXTS, Batch
from tests.integration.serving.world import NAME, Registry


def write_parquet(path: Path, rows: int) -> None:
    texts = [TEXTS[row % len(TEXTS)] for row in range(rows)]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(range(rows)), "text": texts}), path, row_group_size=17)


def test_a_folder_of_parquet_files_becomes_one(batch: Batch, tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", 43)
    write_parquet(tmp_path / "in" / "b.parquet", 9)
    code, found = batch("--input", str(tmp_path / "in"), "--model", f"{NAME}@production")
    assert code == ExitCode.OK, batch.told
    assert (found["rows"], found["scored"], found["rejected"], found["model_version"]) == (52, 52, 0, "1")
    scored = pq.read_table(batch.output).to_pylist()  # as people read it: the folder is one data set
    assert sorted(row["id"] for row in scored) == sorted([*range(43), *range(9)])
    for row in scored:
        assert row["prediction_label"] == ("positive" if "good" in row["text"] else "negative")
        probabilities = [row["prediction_probability_negative"], row["prediction_probability_positive"]]
        assert row["prediction_score"] == max(probabilities)
        assert (row["prediction_truncated"], row["prediction_model_version"]) == (False, "1")
    assert "52 of 52 rows (100 %)" in batch.told
    before = [path.stat().st_mtime_ns for path in batch.parts()]
    assert batch("--input", str(tmp_path / "in"), "--model", f"{NAME}@production")[1]["computed_rows"] == 0
    assert [path.stat().st_mtime_ns for path in batch.parts()] == before


def test_bad_rows_go_to_the_side_with_file_row_and_reason(batch: Batch, tmp_path: Path) -> None:
    lines = [
        '{"text": "it was good", "n": 1.10, "n2": 12345678901234567890123}',
        "",
        '{"n": 2}',
        '{"text": " "}',
        '{"text": 7}',
        '{"text": "x}',
        '{"text": "' + "good " * 100 + '"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    code, found = batch("--input", str(tmp_path / "in.jsonl"), "--no-truncate")
    assert code == ExitCode.OK, batch.told
    assert (found["rows"], found["scored"]) == (6, 1)
    (part,) = batch.parts()
    text = part.read_text()
    assert text.startswith(lines[0].removesuffix("}")), "the record is as it was, to the last digit"
    answer = json.loads(text)["prediction"]
    assert (answer["label"], answer["truncated"], answer["model_version"]) == ("positive", False, "1")
    reasons = ["missing_text", "empty_text", "not_text", "unreadable_row", "text_too_long"]
    assert found["rejected_by_reason"] == dict.fromkeys(reasons, 1)
    assert [(row["row"], row["reason"]) for row in batch.rejected()] == list(zip(range(2, 7), reasons, strict=True))
    assert {row["file"] for row in batch.rejected()} == {str(tmp_path / "in.jsonl")}


def test_what_was_killed_goes_on_by_its_version_and_computes_nothing_twice(
    batch: Batch, registry: Registry, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    rows = [[str(row), TEXTS[row % len(TEXTS)]] for row in range(2000)]
    with gzip.open(tmp_path / "in.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    arguments = [*batch.arguments(), "--input", str(tmp_path / "in.csv.gz")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.batch_score", *arguments],
        env={**os.environ, "RAY_ADDRESS": ray_cluster.address},
        stderr=(tmp_path / "log").open("w"),
    )
    while len(batch.parts()) < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()
        threading.Event().wait(0.01)
    process.kill()
    process.wait()
    registry.promote(registry.register())
    until_quiet(batch)
    before = {path: path.stat().st_mtime_ns for path in batch.parts()}
    assert 5 <= len(before) < 200
    code, found = batch("--input", str(tmp_path / "in.csv.gz"))
    assert code == ExitCode.OK, batch.told
    assert "goes on with it; trialgate-classifier@production is version 2 now" in batch.told
    assert found["rows"] == 2000
    assert found["computed_rows"] == 2000 - 10 * len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    scored = [row for path in batch.parts() for row in csv.DictReader(path.open(newline=""))]
    assert [[row["id"], row["text"]] for row in scored] == rows
    assert {row["prediction_model_version"] for row in scored} == {"1"}
    assert not list(batch.output.rglob(".tmp-*"))


def until_quiet(batch: Batch) -> None:
    """Waits for the workers of the killed job, which end by themselves."""
    workers = [p for p in psutil.process_iter(["name"]) if "Scorer" in (p.info["name"] or "")]
    psutil.wait_procs(workers, timeout=60)
