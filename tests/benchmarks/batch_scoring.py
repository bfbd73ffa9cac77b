"""Throughput of batch scoring against the bare engine, per core.

    python -m tests.benchmarks.batch_scoring                                    # built-in texts
    python -m tests.benchmarks.batch_scoring --texts FILE.parquet --rows 2000   # column text

One DistilBERT-base (random weights: speed does not depend on them), registered in an MLflow of its own, and one Parquet
file. ``raw`` is the engine alone on one core, tokenising included, before and after the job. The job runs with one
worker per core; it is measured from the first finished part to the last, when workers are started and loaded.

The machine may be busy with other things, so the ratio is that of processor time: what the job's workers took, and what
all of its processes took (readers, Ray, the driver). Wall-clock rates stand beside them. ``lanes`` is one worker of all
cores whose forward passes run on one core each, as in serving: what it would take in memory instead of several workers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from configs.loading import load_settings
from ray_jobs.batch.plan import Pool, find_job
from ray_jobs.cluster import connected
from ray_jobs.data.generator import generate
from tests.benchmarks.serving import make_model

NAME = "batch-benchmark"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", metavar="FILE.parquet", help="column text; default: generated sentences")
    parser.add_argument("--rows", type=int, default=2000, help="texts to score")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows-per-part", type=int, default=250)
    parser.add_argument("--raw", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--lanes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.raw:
        raw(Path(options.raw[0]), Path(options.raw[1]), options.lanes)
        return
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tg-bench-") as temporary:
        folder = Path(temporary)
        texts = _texts(options.texts, options.rows)
        pq.write_table(pa.table({"text": texts}), folder / "in.parquet")
        model = make_model(folder / "model", texts)
        uri = register(model, folder)
        rates = [_raw_in_a_process(model, folder / "in.parquet")]
        job = score_all(folder, uri, options.workers, options.rows_per_part)
        rates.append(_raw_in_a_process(model, folder / "in.parquet"))
        _raw_in_a_process(model, folder / "in.parquet", lanes=options.workers)
    one_core = sum(rates) / len(rates)
    print(f"job: {job['worker_rate']:.1f} texts per second of its workers' processor time, "
          f"{100 * job['worker_rate'] / one_core:.0f} % of raw")  # fmt: skip
    print(f"job: {job['rate']:.1f} of all its processes', {100 * job['rate'] / one_core:.0f} % of raw")
    print(f"job: {job['wall_rate']:.1f} texts/s on {options.workers} workers, wall-clock, first part to last; "
          f"the first part was there after {job['start']:.0f} s")  # fmt: skip
    print(f"job: {job['worker_mb']:.0f} MB per worker (PSS), {job['all_mb']:.0f} MB in all processes")


def raw(model: Path, file: Path, lanes: int) -> None:
    """Prints the engine's texts per second of processor time; with ``lanes`` its memory with as many threads."""
    import torch

    from serve_app.inference.engine import Engine

    os.environ["RAYON_NUM_THREADS"] = "1"
    texts = pq.read_table(file)["text"].to_pylist()
    engine = Engine.load(model, threads=1, max_batch_tokens=512)
    if lanes:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(engine.predict, [texts[lane::lanes][:200] for lane in range(lanes)]))
        print(f"lanes: {psutil.Process().memory_full_info().pss / 1e6:.0f} MB in one process", flush=True)
        return
    engine.predict(texts[:100])
    started, cpu = time.perf_counter(), time.process_time()
    engine.predict(texts)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
    print(f"raw: {len(texts) / cpu:.1f} texts per second of processor time, {len(texts) / seconds:.1f} by the clock, "
          f"{engine.precision}", flush=True)  # fmt: skip


def _raw_in_a_process(model: Path, file: Path, lanes: int = 0) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.batch_scoring", "--raw", str(model), str(file)]
    done = subprocess.run([*command, f"--lanes={lanes}"], check=True, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    return float(done.stdout.split()[1])


def register(model: Path, folder: Path) -> str:
    """Registers the saved model in an MLflow of its own under ``folder`` and returns that one's address."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.create_experiment(NAME, (folder / "artifacts").as_uri())
    mlflow.set_experiment(NAME)
    with contextlib.redirect_stderr(open(os.devnull, "w")), mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="model", loader_module="serve_app.pyfunc_model", data_path=str(model), pip_requirements=[]
        )
        version = mlflow.register_model(logged.model_uri, NAME).version
    mlflow.MlflowClient().set_registered_model_alias(NAME, "production", version)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return uri


def score_all(folder: Path, uri: str, workers: int, rows_per_part: int) -> dict[str, Any]:
    """Runs the job on a Ray of its own; rates and memory between its first finished part and its last."""
    from ray_jobs.batch.stream import score

    sets = {"home": folder / "home", "tracking.uri": uri, "batch_score.model": f"{NAME}@production",
            "batch_score.input": f"[{folder}/in.parquet]", "batch_score.output": folder / "out",
            "batch_score.rows_per_part": rows_per_part}  # fmt: skip
    job = find_job(load_settings(None, [f"{name}={value}" for name, value in sets.items()]))
    begun = time.perf_counter()
    memory: list[tuple[float, float]] = []
    with connected(str(folder / "home")):
        job.output.begin(job.description)
        outcomes, marks = [], []
        for outcome in score(job.work, job.files, {}, Pool(workers, workers)):
            assert not outcome.error, outcome.error
            outcomes.append(outcome)
            marks.append((time.perf_counter(), _processor_seconds()))
            if len(outcomes) == workers + 1:
                memory.append(_megabytes())
    rows, after = sum(outcome.rows for outcome in outcomes[1:]), outcomes[1:]
    seconds, cpu = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    return {
        "worker_rate": rows / sum(outcome.cpu_seconds for outcome in after),
        "rate": rows / cpu,
        "wall_rate": rows / seconds,
        "start": marks[0][0] - begun,
        "worker_mb": memory[0][0],
        "all_mb": memory[0][1],
    }


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _processor_seconds() -> float:
    total = 0.0
    for process in _family():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _megabytes() -> tuple[float, float]:
    """PSS of the largest worker and of all processes."""
    sizes, workers = [], []
    for process in _family():
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_full_info().pss / 1e6)
            if "Scorer" in process.name():
                workers.append(sizes[-1])
    return max(workers), sum(sizes)


def _texts(path: str | None, rows: int) -> list[str]:
    if path is None:
        return generate(rows, 0)[0]
    texts: list[str] = pq.read_table(path, columns=["text"])["text"].slice(0, rows).to_pylist()
    return texts


if __name__ == "__main__":
    main()
