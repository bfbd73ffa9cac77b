"""Processes that promote at the same moment, and that are killed or stopped where it hurts.

Each is a process of its own, forked from a server that has imported the gate, so that eight of them start in no time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from configs.schema import TrackingConfig
from gate import carry_out, promotion, registry, speed
from serve_app.mlflow_client import connect
from tests.integration.gate.world import PICTURES, empty_picture

# Where a holder of the lease can be hit: module and function, and whether it is after the function has run.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "lease taken": (promotion, "settle_interrupted", False),
    "decision opened": (carry_out.audit, "begin", True),
    "registered": (registry, "register", True),
    "before the alias": (registry, "promote_alias", False),
    "after the alias": (registry, "promote_alias", True),
    "before the end": (carry_out.audit, "finish", False),
}
TIMEOUT_S = 240  # nobody waits that long; it turns a deadlock into a failure


@dataclass(frozen=True)
class Racer:
    """One promotion. ``hit`` is sent to the process at ``point``."""

    uri: str
    run_id: str
    point: str | None = None
    hit: int = signal.SIGKILL


def race(racers: list[Racer]) -> list[int | None]:
    """Lets all promote at once, and returns their exit codes: 0 promoted, 3 blocked, -9 killed, None never ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.gate.racers", "mlflow", "scipy.stats", "matplotlib.figure"])
    start = context.Barrier(len(racers))
    processes: list[BaseProcess] = [context.Process(target=_promote, args=(racer, start)) for racer in racers]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_S)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def begin(racer: Racer) -> BaseProcess:
    """Starts one promotion."""
    process = multiprocessing.get_context("forkserver").Process(target=_promote, args=(racer, None))
    process.start()
    return process


def _promote(racer: Racer, start: Any) -> None:
    speed.TEXTS = 2  # as in the process of the tests
    for drawer, picture in PICTURES:
        setattr(drawer, picture, empty_picture)
    client = connect(TrackingConfig(uri=racer.uri))
    if racer.point is not None:
        module, function, after = POINTS[racer.point]
        setattr(module, function, _hit(getattr(module, function), racer.hit, after=after))
    if start is not None:
        start.wait(TIMEOUT_S)
    raise SystemExit(int(promotion.promote(client, run_id=racer.run_id).exit_code))


def _hit(function: Callable[..., Any], number: int, *, after: bool) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        if not after:
            os.kill(os.getpid(), number)
        result = function(*arguments, **named)
        if after:
            os.kill(os.getpid(), number)
        return result

    return run
