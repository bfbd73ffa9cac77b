"""What a search costs its driver, by the number of trials at a time, without the machines for them.

    python -m tests.benchmarks.scale_search --trials 1000 [--concurrent 1000] [--epochs 10] [--mlflow http]

A whole search (``ray_jobs.search``) with everything real but the trials: Tune's loop, our sampler, scheduler, tracker,
journal and report, and MLflow, as a database of this process or as a server. The trials are objects of this process
(``in_process_actors.py``) that report at once, so what takes time is the driver alone.

All figures are processor time, because other work disturbs that least. The writer's thread and the loop's take turns
(one interpreter): a driver keeps up while the sum of both is below one second a second. What Ray itself takes to watch
N running trials is measured beside it, on tasks that never end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import psutil
import ray

from configs.loading import load_settings
from configs.schema import Settings
from ray_jobs.journal import Journal
from ray_jobs.search import run_search
from serve_app import mlflow_client
from tests.benchmarks.in_process_actors import FakeTrial, in_process
from tests.servers import MlflowServer

SEARCH = [
    "data.generator={texts: 240, test_texts: 80}",
    "model.architecture={layers: 1, width: 16, heads: 2, vocabulary_size: 600}",
    "model.max_length=48",
    "training.precision=fp32",
]


@dataclass(frozen=True)
class Cost:
    """``results``: epochs and ends that Tune's loop handled; ``loop``, ``writer``, ``whole``: processor seconds of the
    loop, of the tracker's thread and of the driver from its start to its end; ``server``: of MLflow's processes;
    ``calls``: to MLflow by kind, and what
    they cost the tracker's thread; ``sending_s``: seconds by the clock in which the writer sent."""

    trials: int
    live: int
    results: int
    loop: float
    writer: float
    whole: float
    server: float
    calls: Counter[str]
    calls_cpu: Mapping[str, float]
    sending_s: float
    grown_mb: float
    peak_mb: float


class Counting:
    """An MLflow client that counts its calls. Of those of the tracker's thread: ``cpu``, processor seconds by kind,
    ``sending_s``, seconds by the clock, and ``writer``, the thread's processor seconds so far."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.writer = self.sending_s = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            began, worked = time.monotonic(), time.thread_time()
            try:
                return found(*args, **kwargs)
            finally:
                if threading.current_thread().name == "mlflow-writer":
                    self.writer = time.thread_time()
                    self.cpu[name] += self.writer - worked
                    self.sending_s += time.monotonic() - began

        return call


def simulate(settings: Settings, server: MlflowServer | None) -> Cost:
    """The search, in this process, which is connected to a Ray that says it has room for it."""
    me, clients, connect = psutil.Process(), list[Counting](), mlflow_client.connect

    def counted(tracking: Any) -> Any:
        clients.append(Counting(connect(tracking)))
        return clients[-1]

    before, memory, served = sum(me.cpu_times()[:2]), me.memory_info().rss, _seconds(server)
    with in_process(settings.training.epochs) as made, mock.patch.object(mlflow_client, "connect", counted):
        run_search(settings)
    (actors,), (client,) = made, clients
    return Cost(
        trials=settings.search.trials,
        live=actors.most_live,
        results=actors.results,
        loop=actors.cpu[1] - actors.cpu[0],
        writer=client.writer,
        whole=sum(me.cpu_times()[:2]) - before,
        server=_seconds(server) - served,
        calls=client.calls,
        calls_cpu=client.cpu,
        sending_s=client.sending_s,
        grown_mb=(me.memory_info().rss - memory) / 1e6,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    )


class _Endless:
    """An actor whose tasks never end."""

    async def run(self, number: int) -> None:
        """Waits for ever."""
        await asyncio.Event().wait()

    async def answers(self) -> bool:
        """At once."""
        return True


def watching(tasks: int, rounds: int = 30) -> float:
    """Processor seconds of this process for one ``ray.wait`` on so many tasks that run and one that is ready, which is
    how Tune's actor manager asks for its next event."""

    actor: Any = ray.remote(_Endless).options(num_cpus=0, max_concurrency=tasks + 1).remote()
    ray.get(actor.answers.remote())
    running = [actor.run.remote(number) for number in range(tasks)]
    ready = ray.put(None)
    began = time.process_time()
    for _ in range(rounds):
        random.shuffle(running)
        found, _ = ray.wait([*running, ready], num_returns=1, timeout=10)
        assert found == [ready]
    used = (time.process_time() - began) / rounds
    ray.kill(actor)
    return used


def appending(events: int, rounds: int = 20) -> float:
    """Seconds of one more event in a journal of so many in an object store, without the store's network."""
    line = json.dumps({"time": time.time(), "event": "epoch", "trial": "0" * 8, "metrics": FakeTrial({}, 1).train()})
    store = fsspec.filesystem("memory")
    store.pipe_file("/scale/journal.jsonl", f"{line}\n".encode() * events)
    journal = Journal("memory://scale/journal.jsonl")
    began = time.process_time()
    for _ in range(rounds):
        journal.append({"event": "epoch"})
    used = (time.process_time() - began) / rounds
    store.rm("/scale", recursive=True)
    return used


def _seconds(server: MlflowServer | None) -> float:
    """Processor seconds of a server's processes."""
    if server is None:
        return 0.0
    return sum(sum(process.cpu_times()[:2]) for process in server.processes())


def table(cost: Cost, watch: float, append: float) -> str:
    """Markdown."""
    calls = sum(cost.calls.values())
    per_result = 1000 / cost.results
    rows = [
        ("trials, at a time at most", f"{cost.trials}, {cost.live}"),
        ("results that Tune's loop handled", f"{cost.results}"),
        ("loop: processor ms per result", f"{cost.loop * per_result:.2f}"),
        ("ray.wait on that many trials: processor ms", f"{watch * 1000:.2f}"),
        ("an event more in the journal in an object store: processor ms", f"{append * 1000:.2f}"),
        ("writer to MLflow: processor ms per result", f"{cost.writer * per_result:.2f}"),
        ("MLflow server: processor ms per result", f"{cost.server * per_result:.2f}"),
        ("driver, whole search: processor s", f"{cost.whole:.1f}"),
        ("calls to MLflow: all, per result", f"{calls}, {calls / cost.results:.2f}"),
        (
            "of these, and processor ms of one",
            ", ".join(
                f"{name} {count} ({1000 * cost.calls_cpu[name] / count:.1f})"
                for name, count in cost.calls.most_common(5)
            ),
        ),
        ("calls to MLflow per second of the writer", f"{calls / cost.sending_s:.0f}"),
        ("memory of the driver: grown by, peak, MB", f"{cost.grown_mb:.0f}, {cost.peak_mb:.0f}"),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


@contextlib.contextmanager
def mlflow(kind: str, home: Path) -> Iterator[MlflowServer | None]:
    """The server, when there is to be one."""
    server = MlflowServer(f"sqlite:///{home}/mlflow.db", home / "mlflow") if kind == "http" else None
    try:
        yield server
    finally:
        if server is not None:
            server.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="count (default %(default)s)")
    parser.add_argument("--concurrent", type=int, help="at a time (default: all)")
    parser.add_argument("--epochs", type=int, default=10, help="of a trial (default %(default)s)")
    parser.add_argument("--mlflow", choices=["sqlite", "http"], default="sqlite", help="default %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    concurrent = options.concurrent or options.trials
    with (
        tempfile.TemporaryDirectory(prefix="tg-scale-", ignore_cleanup_errors=True) as folder,
        contextlib.redirect_stdout(sys.stderr),
        mlflow(options.mlflow, Path(folder)) as server,
    ):
        sets = [f"home={folder}", f"search.trials={options.trials}", f"search.max_concurrent={concurrent}"]
        sets += [f"training.epochs={options.epochs}", *SEARCH, *([f"tracking.uri={server.uri}"] if server else [])]
        settings = load_settings("quickstart.yaml", [*sets, *options.overrides])
        ray.init(address="local", num_cpus=concurrent, include_dashboard=False, log_to_driver=False,
                 object_store_memory=100 * 1024**2, logging_level=logging.ERROR)  # fmt: skip
        try:
            watch = watching(concurrent)
            cost = simulate(settings, server)
        finally:
            ray.shutdown()
    print(table(cost, watch, appending(cost.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
