"""Dynamic batching without timers: a batch is formed the moment the model is free, from what waits then.

Requests wait in the order of their arrival. The next batch always has the oldest text in it, then takes later ones in
order while they fit the budget of tokens (their sum: there is no padding) and of texts; one that does not fit may be
passed over, the oldest never. So nothing waits for a timer while the model is idle, batches grow by themselves while
it is busy, and no text starves. Only a full batch, which nothing that comes later could make better, is formed ahead,
one for each lane, so that under overload no lane waits for a busy event loop. What is cancelled or past its deadline is
dropped before the forward pass. When a forward pass fails, its batch is halved until the culprit stands alone: its
neighbours get their answers.

Plain asyncio, one event loop, no Ray and no model: ``run`` is any coroutine function that computes a list of items.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class DeadlineExceeded(Exception):
    """The deadline passed while the request waited."""


class BatcherClosed(Exception):
    """The batcher takes nothing new: it is shutting down."""


class Admission:
    """How many texts may be in work at once. All the texts of a request get in, or none does."""

    def __init__(self, max_texts: int) -> None:
        self.max_texts = max_texts
        self.held = 0

    def try_acquire(self, texts: int) -> bool:
        """Takes ``texts`` places, or none and returns False."""
        if self.held + texts > self.max_texts:
            return False
        self.held += texts
        return True

    def release(self, texts: int) -> None:
        """Gives ``texts`` places back."""
        self.held -= texts
        if self.held < 0:
            raise RuntimeError("more places were released than were taken")


@dataclass(frozen=True)
class BatchRecord:
    """One forward pass, for the metrics: how many texts and tokens, how long it took, seconds."""

    texts: int
    tokens: int
    forward_s: float
    queue_s: tuple[float, ...]  # of each text: from its arrival to the start of this pass
    failed: bool = False


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """Results in the order of the items, with the request's waiting and computing time, seconds."""

    results: list[Result]
    queue_s: float
    forward_s: float


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    size: int
    deadline: float
    arrived: float
    done: asyncio.Future[Result]
    waiting: bool = field(default=False)
    started: float = field(default=0.0)
    finished: float = field(default=0.0)


class _Pass(Generic[Item, Result]):
    """One forward pass. ``entries``: what it computes, once it has begun. ``tokens_ahead``: its batch's until then."""

    def __init__(self, batch: list[_Entry[Item, Result]], clock: Callable[[], float]) -> None:
        self.entries, self._clock = batch, clock
        self.too_late: list[_Entry[Item, Result]] = []
        self.began = clock()
        self.tokens_ahead = sum(entry.size for entry in batch)

    def take(self) -> list[Item]:
        """Begins. On the thread that computes, so it only looks."""
        self.began = now = self._clock()
        self.tokens_ahead = 0
        wanted = [entry for entry in self.entries if not entry.done.done()]
        self.too_late = [entry for entry in wanted if entry.deadline <= now]
        self.entries = [entry for entry in wanted if entry.deadline > now]
        return [entry.item for entry in self.entries]


class Batcher(Generic[Item, Result]):
    """Collects items of concurrent requests into batches for ``run``.

    ``await run(take)`` calls ``take()`` once, on any thread, when it begins to compute, and gives one result for each
    of the items that this returns, in order: those of a batch that somebody still waits for, which may be none. It
    computes at most ``lanes`` calls at a time, the oldest first; as many again may be open.
    ``max_tokens`` bounds the sum of the items' sizes in a batch (an item larger than that goes alone), ``max_texts``
    their number. The number of waiting items is bounded by the caller, with ``Admission``. ``observe`` is called on
    the event loop after every forward pass. ``clock`` gives seconds, the deadlines' time base.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], list[Item]]], Awaitable[Sequence[Result]]],
        *,
        max_tokens: int,
        max_texts: int,
        lanes: int = 1,
        observe: Callable[[BatchRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_tokens < 1 or max_texts < 1 or lanes < 1:
            raise ValueError(
                f"max_tokens, max_texts and lanes must be at least 1, found {max_tokens}, {max_texts} and {lanes}"
            )
        self._run, self._observe, self._clock = run, observe, clock
        self._max_tokens, self._max_texts, self._lanes = max_tokens, max_texts, lanes
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._waiting_texts = self._waiting_tokens = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._passes: set[_Pass[Item, Result]] = set()
        self._closed = False

    @property
    def waiting_texts(self) -> int:
        """How many items wait, without those that were cancelled."""
        return self._waiting_texts

    @property
    def waiting_tokens(self) -> int:
        """Sum of the sizes of all waiting items; what was cancelled counts no more, though it still stands there."""
        return self._waiting_tokens

    @property
    def tokens_ahead(self) -> int:
        """Sum of the sizes of all that is not being computed yet: what waits, and batches formed ahead, also what of
        those is cancelled or late: that is looked at when they begin."""
        return self._waiting_tokens + sum(computed.tokens_ahead for computed in self._passes)

    async def submit(self, items: Sequence[Item], sizes: Sequence[int], deadline: float = math.inf) -> Outcome[Result]:
        """Results of ``items`` (``sizes``: tokens of each). Cancelling this call drops what has not been computed.

        Raises DeadlineExceeded if ``deadline`` (by ``clock``) passes before all items are in a forward pass,
        BatcherClosed after ``close``, and whatever ``run`` raises for one of these items.
        """
        if self._closed:
            raise BatcherClosed
        if not items:
            return Outcome([], 0.0, 0.0)
        loop, arrived = asyncio.get_running_loop(), self._clock()
        entries = [
            _Entry(item, size, deadline, arrived, loop.create_future()) for item, size in zip(items, sizes, strict=True)
        ]
        self._waiting.extend(entries)
        for entry in entries:
            self._count(entry, waiting=True)
        self._start_worker()
        try:
            results = [await entry.done for entry in entries]
        finally:
            for entry in entries:  # cancelled, or one text of this request failed: nobody reads the rest
                self._count(entry, waiting=False)
                if not entry.done.cancel() and not entry.done.cancelled():
                    entry.done.exception()  # marks it as read, or asyncio complains when it is collected
        queue_s = max(entry.started for entry in entries) - arrived
        forward_s = max(entry.finished for entry in entries) - min(entry.started for entry in entries)
        return Outcome(results, queue_s, forward_s)

    async def close(self) -> None:
        """Takes nothing new and returns when everything that waits is answered."""
        self._closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        try:
            while self._may_form(len(self._workers) - 1) and (batch := self._take_batch()):
                self._start_worker()  # for what this batch had no room for
                await self._compute(batch)
        except BaseException as error:
            for entry in self._waiting:
                self._count(entry, waiting=False)
            self._fail(list(self._waiting), error)
            self._waiting.clear()
            raise
        finally:
            # Here, not in a callback of the task, which runs a turn of the loop later: what is submitted in between
            # would count on a worker that takes nothing any more.
            worker = asyncio.current_task()
            assert worker is not None
            self._workers.discard(worker)

    def _start_worker(self) -> None:
        if self._waiting_texts and self._may_form(len(self._workers)):
            # It starts in the next turn of the loop, so requests that are already there share its first batch.
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))

    def _may_form(self, formed: int) -> bool:
        """Whether another batch may be formed beside ``formed`` ones that are not computed yet."""
        full = self._waiting_tokens >= self._max_tokens or self._waiting_texts >= self._max_texts
        return formed < self._lanes or (full and formed < 2 * self._lanes)

    def _take_batch(self) -> list[_Entry[Item, Result]]:
        """The next batch, oldest first, without what is cancelled or expired; empty when nothing waits."""
        now = self._clock()
        batch: list[_Entry[Item, Result]] = []
        passed_over: list[_Entry[Item, Result]] = []
        tokens = 0
        while self._waiting and len(batch) < self._max_texts and tokens < self._max_tokens:
            entry = self._waiting.popleft()
            if entry.done.done():
                continue
            if entry.deadline <= now:
                self._count(entry, waiting=False)
                entry.done.set_exception(DeadlineExceeded())
            elif batch and tokens + entry.size > self._max_tokens:
                passed_over.append(entry)
            else:
                self._count(entry, waiting=False)
                batch.append(entry)
                tokens += entry.size
        self._waiting.extendleft(reversed(passed_over))
        return batch

    def _count(self, entry: _Entry[Item, Result], *, waiting: bool) -> None:
        """Keeps the sums of what waits: looked at for every request, they must not take longer the more waits."""
        if entry.waiting != waiting:
            entry.waiting, sign = waiting, 1 if waiting else -1
            self._waiting_texts += sign
            self._waiting_tokens += sign * entry.size

    async def _compute(self, batch: list[_Entry[Item, Result]]) -> None:
        computed = _Pass(batch, self._clock)
        self._passes.add(computed)
        error: Exception | None = None
        results: Sequence[Result] = ()
        try:
            results = await self._run(computed.take)
            if len(results) != len(computed.entries):
                error = RuntimeError(f"the forward pass gave {len(results)} results for {len(computed.entries)} texts")
        except Exception as caught:  # noqa: BLE001 - whatever the model raises belongs to these texts alone
            error = caught
        except BaseException as caught:
            self._fail(batch, caught)
            raise
        finally:
            self._passes.discard(computed)
        self._fail(computed.too_late, DeadlineExceeded())
        started, finished, batch = computed.began, self._clock(), computed.entries
        if not batch:
            return
        self._record(batch, started, finished, failed=error is not None)
        if error is None:
            for entry, result in zip(batch, results, strict=True):
                entry.started, entry.finished = started, finished
                if not entry.done.done():
                    entry.done.set_result(result)
        elif len(batch) == 1:
            self._fail(batch, error)
        else:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                if alive := [entry for entry in half if not entry.done.done()]:
                    await self._compute(alive)

    def _record(self, batch: list[_Entry[Item, Result]], started: float, finished: float, *, failed: bool) -> None:
        if self._observe is None:
            return
        try:
            self._observe(
                BatchRecord(
                    texts=len(batch),
                    tokens=sum(entry.size for entry in batch),
                    forward_s=finished - started,
                    queue_s=tuple(started - entry.arrived for entry in batch),
                    failed=failed,
                )
            )
        except Exception:
            logger.exception("recording a batch failed")

    def _fail(self, entries: list[_Entry[Item, Result]], error: BaseException) -> None:
        for entry in entries:
            if not entry.done.done():
                if isinstance(error, asyncio.CancelledError):
                    entry.done.cancel()
                else:
                    entry.done.set_exception(error)
