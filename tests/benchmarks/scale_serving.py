"""What replicas cost Ray Serve and us, by their number: start, memory, the idle service, and a move of the alias.

    python -m tests.benchmarks.scale_serving --replicas 8 16 32

So many classifier replicas with a tiny model, behind the real controller, HAProxy and board, on a Ray of this machine
that is told it has room for them. For every number the application is deployed anew. Processor seconds are of
processes, so other work beside it disturbs them little; seconds by the clock depend on how many cores start the
replicas, and on what else these do.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.swaps import running
from tests.integration.serving.world import Service, processes, wait_until

_LIMIT_S = 600.0
KINDS = {
    "controller": "ServeController",
    "board": "ServeReplica:trialgate:board",
    "replicas": "ServeReplica:trialgate:classifier",
    "their models": "serve_app.engine_worker",
    "HAProxy and its manager": "roxy",
    "GCS": "gcs_server",
    "raylet": "raylet/raylet",
}

_OF_A_REPLICA = ("replicas", "their models")


@dataclass(frozen=True)
class Cost:
    """``start_s``, ``move_s``: by the clock, until every replica was ready, and until every one served the version that
    the alias moved to. ``start_cpu_s``: processor seconds of one replica until then. ``idle``, ``moving``: processor
    seconds per second, by kind of process. ``memory_mb``: of one replica (RSS, PSS) and of the controller and board."""

    replicas: int
    start_s: float
    start_cpu_s: float
    move_s: list[float]
    idle: dict[str, float]
    moving: dict[str, float]
    rss_mb: float
    pss_mb: float
    controller_mb: float
    board_mb: float


def seconds() -> dict[str, float]:
    """Processor seconds so far, by kind."""
    return {kind: sum(_cpu(process) for process in processes(name)) for kind, name in KINDS.items()}


def measure(replicas: int, idle_s: float, moves: int) -> Cost:
    """Starts the service and ends it."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tg-scale-", ignore_cleanup_errors=True) as home,
        _service(Path(home), replicas) as service,
    ):
        start_s = time.monotonic() - began
        start_cpu_s = sum(seconds()[kind] for kind in _OF_A_REPLICA) / replicas
        idle = _over(idle_s)
        versions = [service.registry.register(), service.first_version]
        before, moved_at, took = seconds(), time.monotonic(), []
        for number in range(moves):
            service.registry.promote(versions[number % 2])
            took.append(service.wait_for_version(versions[number % 2], replicas, _LIMIT_S))
        moving = _rates(before, time.monotonic() - moved_at)
        found = [process for kind in _OF_A_REPLICA for process in processes(KINDS[kind])]
        assert len(found) == len(_OF_A_REPLICA) * replicas
        memory = [process.memory_full_info() for process in found]
        (controller,), (board,) = processes(KINDS["controller"]), processes(KINDS["board"])
        return Cost(
            replicas=replicas,
            start_s=start_s,
            start_cpu_s=start_cpu_s,
            move_s=took,
            idle=idle,
            moving=moving,
            rss_mb=statistics.mean(one.rss for one in memory) / 1e6,
            pss_mb=statistics.mean(one.pss for one in memory) / 1e6,
            controller_mb=controller.memory_info().rss / 1e6,
            board_mb=board.memory_info().rss / 1e6,
        )


@contextlib.contextmanager
def _service(home: Path, replicas: int) -> Iterator[Service]:
    with running(home, replicas, width=16, cpus_per_replica=0.01) as service:
        # Serve polls its controller until all is healthy; by then the last replicas' state has been written.
        wait_until(lambda: len(service.versions()) == replicas, _LIMIT_S)
        yield service


def _over(duration_s: float) -> dict[str, float]:
    before, began = seconds(), time.monotonic()
    time.sleep(duration_s)  # what is measured is that nothing happens
    return _rates(before, time.monotonic() - began)


def _rates(before: dict[str, float], elapsed_s: float) -> dict[str, float]:
    return {kind: (now - before[kind]) / elapsed_s for kind, now in seconds().items()}


def _cpu(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def table(costs: Sequence[Cost]) -> str:
    """Markdown, a column for every number of replicas."""
    rows = [
        ("start, all ready: s by the clock", [f"{cost.start_s:.0f}" for cost in costs]),
        ("start of one replica: processor s", [f"{cost.start_cpu_s:.1f}" for cost in costs]),
        ("memory of a replica: RSS, PSS, MB", [f"{cost.rss_mb:.0f}, {cost.pss_mb:.0f}" for cost in costs]),
        ("memory of controller, board: RSS, MB", [f"{cost.controller_mb:.0f}, {cost.board_mb:.0f}" for cost in costs]),
        *((f"idle: {kind}, % of a core", [f"{100 * cost.idle[kind]:.1f}" for cost in costs]) for kind in KINDS),
        ("a move of the alias until all serve it: median, longest, s",
         [f"{statistics.median(cost.move_s):.1f}, {max(cost.move_s):.1f}" for cost in costs]),
        *((f"moving: {kind}, % of a core", [f"{100 * cost.moving[kind]:.1f}" for cost in costs])
          for kind in ("controller", "board", "replicas")),
    ]  # fmt: skip
    head = ["replicas", *(str(cost.replicas) for cost in costs)]
    lines = [" | ".join([name, *values]) for name, values in rows]
    return "\n".join(f"| {line} |" for line in [" | ".join(head), " | ".join(["---"] * len(head)), *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[8, 16, 32], help="counts (default 8 16 32)")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch the idle service (default 20)")
    parser.add_argument("--moves", type=int, default=5, help="of the alias (default %(default)s)")
    options = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        costs = [measure(replicas, options.idle, options.moves) for replicas in options.replicas]
    print(table(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
