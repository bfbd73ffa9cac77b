"""The lanes of a replica's forward passes: one for each core, or all cores for one pass while nothing else waits.

Under load every lane computes a batch of its own on one core. Two cores that share every product of one pass instead
wait for each other a hundred times per pass, and whatever else the machine does on one of them holds up both. A text
that comes alone has all cores: that is the shortest wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
_MEMORY = 0.2  # weight of the newest forward pass in the estimate of tokens per second


class Lanes:
    """Runs forward passes for one event loop, in threads. ``cores``: of this replica, count; ``shared``: one pass at a
    time, however many they are, as on a GPU. ``prepare(cores)`` is called on each thread that is to have so many."""

    def __init__(self, cores: int, prepare: Callable[[int], None], *, shared: bool = False) -> None:
        self.count = 1 if shared else cores
        # OpenMP counts the threads of all teams of a process; when they are more than the cores, every barrier sleeps
        # instead of spinning (31 sentences: 216 instead of 197 ms). So one thread alone has a team.
        self._wide = ThreadPoolExecutor(1, "forward", prepare, (cores,))
        self._narrow = ThreadPoolExecutor(self.count, "lane", prepare, (1,)) if self.count > 1 else None
        self._running: dict[int, float] = {}
        self._number = 0
        self._tokens_per_s = 0.0

    async def run(self, forward: Callable[[], tuple[Result, int]], *, alone: bool) -> Result:
        """The result of ``forward()``, which also tells how many tokens it computed. ``alone``: nothing else waits."""
        # All cores for a pass beside which nothing runs or waits.
        executor = self._narrow if self._narrow is not None and not (alone and not self._running) else self._wide
        at_once = 1 if executor is self._wide else self.count
        self._number += 1
        number = self._number
        self._running[number] = time.monotonic()  # counts as running from here, or two passes would be the only one

        def timed() -> tuple[Result, int, float]:
            self._running[number] = began = time.monotonic()
            return *forward(), time.monotonic() - began

        try:
            result, tokens, seconds = await asyncio.get_running_loop().run_in_executor(executor, timed)
        finally:
            del self._running[number]
        if not alone and tokens:  # only a pass that others wait for is as large as passes get, and as fast by the token
            self._learn(at_once * tokens, seconds)
        return result

    def warm_up(self, forward: Callable[[], object]) -> None:
        """Runs ``forward`` once in every way in which ``run`` would; blocks until then."""
        calls = [self._wide.submit(forward)]
        if self._narrow is not None:
            calls.append(self._narrow.submit(forward))
        for call in calls:
            call.result()

    def seconds_for(self, tokens: int) -> float:
        """How long ``tokens`` would take, by the passes under load so far; 0.0 when there was none."""
        return tokens / self._tokens_per_s if self._tokens_per_s else 0.0

    @property
    def running_s(self) -> float:
        """For how long the oldest forward pass has been running, seconds; 0.0 when none is."""
        return max((time.monotonic() - since for since in list(self._running.values())), default=0.0)

    def close(self) -> None:
        """Starts nothing any more; what runs is not waited for."""
        for executor in (self._wide, self._narrow):
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)

    def _learn(self, tokens: int, seconds: float) -> None:
        if seconds > 0:
            self._tokens_per_s += (tokens / seconds - self._tokens_per_s) * (_MEMORY if self._tokens_per_s else 1.0)
