"""The board: the one place that knows the state and the counters of every replica of the application.

Serve routes a request to any one replica, so no gateway can see all classifiers or all counters by itself. A third
deployment of one replica and no CPU holds them. Every replica keeps one call to it open (``sync``): the board answers
when there is news, when somebody wants fresh counters, or after two seconds at the latest, and the replica reports
anew.
So gateways answer /ready and /info from memory, a changed version is known everywhere within milliseconds, and
/metrics (``scrape``) shows what every replica counted up to that moment, whichever gateway is asked. A deployment,
not an actor of our own, because Serve restarts it, and removes it with the application.

Counters of replicas that are gone stay, so that no total ever falls. Should the board itself die, the living replicas
report to its successor within seconds; what dead ones had counted is lost then, and only then.

Plain asyncio: no Ray in here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.metrics import Family, add, counters_only, render

# Of an idle service most of the board's work: a call through Serve costs the board 1 ms, its caller about as much. It
# bounds what a killed replica has counted and nobody has seen.
HEARTBEAT_S = 2.0
# A replica that has not reported for this long is not counted on. Generous: workers run at low priority (nice 15).
LIVE_S = 6.0
FRESH_S = 1.0  # longest wait of a scrape for the others' counters
KEPT_DEAD = 50  # replicas whose series stay visible after they are gone; older ones are summed up
RETIRED = "retired"
View = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a replica tells. ``number`` grows with every report of a replica; ``generation`` is the last one it saw."""

    deployment: Literal["gateway", "classifier"]
    replica: str
    number: int
    metrics: list[Family]
    status: dict[str, Any] | None = None  # of a classifier, see ClassifierStatus
    generation: int = 0
    view: int = -1  # number of the last view that it saw
    draining: bool = False  # what that view said: a board that was restarted hears of it
    closing: bool = False


class Board:
    """Holds the last report of every replica. All methods run on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[str, Report] = {}
        self._seen: dict[str, float] = {}
        self._retired: dict[str, list[Family]] = {}
        self._news = asyncio.Condition()  # what replicas wait for
        self._reported = asyncio.Condition()  # what scrapes wait for; replicas would all be woken by each other's
        self._generation = 0
        self._view_number = 0
        self._draining = False

    async def sync(self, report: Report) -> View:
        """Takes a report, waits for news (at most HEARTBEAT_S), and answers with the view."""
        await self._take(report)

        def news() -> bool:
            return self._view_number != report.view or self._generation != report.generation

        async with self._news:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait_for(news)
            except TimeoutError:
                pass
        return self.view()

    async def push(self, report: Report) -> View:
        """Takes a report and answers with the view at once."""
        await self._take(report)
        return self.view()

    async def scrape(self, report: Report) -> str:
        """The Prometheus text of all replicas, counted up to now; ``report`` is the asking gateway's own."""
        await self._take(report)
        self._generation += 1
        wanted = self._generation
        await _wake(self._news)

        def all_fresh() -> bool:
            return all(
                other.generation >= wanted or name == report.replica
                for name, other in self._reports.items()
                if self._is_live(name)
            )

        async with self._reported:
            try:
                async with asyncio.timeout(FRESH_S):
                    await self._reported.wait_for(all_fresh)
            except TimeoutError:  # one is busy: its counters are at most a heartbeat old
                pass
        return self._render()

    async def drain(self) -> None:
        """From now on gateways answer predictions with 503 draining."""
        self._draining = True
        await self._changed()

    def view(self) -> View:
        """What gateways need to know: classifier replicas that are alive, and whether the service is draining."""
        return {
            "number": self._view_number,
            "generation": self._generation,
            "draining": self._draining,
            "replicas": [
                report.status
                for name, report in sorted(self._reports.items())
                if report.status is not None and self._is_live(name)
            ],
        }

    async def _take(self, report: Report) -> None:
        known = self._reports.get(report.replica)
        if known is not None and known.number >= report.number:
            return  # overtaken by a later one
        self._reports[report.replica] = report
        self._seen[report.replica] = -math.inf if report.closing else self._clock()
        if report.draining and not self._draining:
            await self.drain()
        if known is None or known.status != report.status or known.closing != report.closing:
            self._retire()
            await self._changed()
        await _wake(self._reported)

    async def _changed(self) -> None:
        self._view_number += 1
        await _wake(self._news)

    def _is_live(self, replica: str) -> bool:
        return self._clock() - self._seen[replica] <= LIVE_S

    def _retire(self) -> None:
        dead = sorted((name for name in self._reports if not self._is_live(name)), key=lambda name: self._seen[name])
        for name in dead[: max(0, len(dead) - KEPT_DEAD)]:
            report = self._reports.pop(name)
            del self._seen[name]
            counted = self._retired.get(report.deployment, [])
            self._retired[report.deployment] = add(counted, counters_only(report.metrics))

    def _render(self) -> str:
        snapshots: dict[tuple[str, str], list[Family]] = {
            (report.deployment, name): report.metrics if self._is_live(name) else counters_only(report.metrics)
            for name, report in self._reports.items()
        }
        snapshots.update({(deployment, RETIRED): families for deployment, families in self._retired.items()})
        return render(snapshots)


async def _wake(condition: asyncio.Condition) -> None:
    async with condition:
        condition.notify_all()


class Reporter:
    """A replica's line to the board: reports its state and counters, and holds the board's latest view.

    ``sync``, ``push`` and ``scrape`` call the board's methods of these names (through Serve, or directly in tests).
    ``collect`` gives the replica's metrics and status. Trouble with the board never reaches the replica: the last
    view stands until the board answers again.
    """

    def __init__(
        self,
        deployment: Literal["gateway", "classifier"],
        replica: str,
        collect: Callable[[], tuple[list[Family], dict[str, Any] | None]],
        *,
        sync: Callable[[Report], Awaitable[View]],
        push: Callable[[Report], Awaitable[View]],
        scrape: Callable[[Report], Awaitable[str]],
    ) -> None:
        self._deployment, self._replica, self._collect = deployment, replica, collect
        self._sync, self._push, self._scrape = sync, push, scrape
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._pushes: set[asyncio.Task[None]] = set()
        self.view: View = {"number": -1, "generation": 0, "draining": False, "replicas": []}

    def start(self) -> None:
        """Starts reporting. Call it on the event loop that the replica's state belongs to."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops reporting and says good-bye, so that nobody counts on this replica any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._push(self._report(closing=True))
        except Exception as error:  # noqa: BLE001 - the board goes down with the application, often first
            logger.debug("the board did not take the good-bye of %s: %s", self._replica, error)

    def news(self) -> None:
        """Reports now, because the replica's status has changed."""
        task = asyncio.create_task(self._push_once())
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    async def metrics_text(self) -> str:
        """The Prometheus text of the whole application."""
        return await self._scrape(self._report())

    async def _run(self) -> None:
        warned = False
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S + LIVE_S):
                    self.view = await self._sync(self._report())
                warned = False
            except Exception as error:  # noqa: BLE001 - whatever happens to the board, the replica goes on
                if not warned:
                    logger.warning("the status board does not answer; trying on: %s", error)
                warned = True
                await asyncio.sleep(HEARTBEAT_S)

    async def _push_once(self) -> None:
        try:
            async with asyncio.timeout(LIVE_S):
                view = await self._push(self._report())
            if view["number"] >= self.view["number"]:  # else overtaken; only the regular report meets a new board
                self.view = view
        except Exception as error:  # noqa: BLE001 - the regular report brings the news as well
            logger.debug("an extra report did not reach the board: %s", error)

    def _report(self, *, closing: bool = False) -> Report:
        self._number += 1
        metrics, status = self._collect()
        return Report(
            self._deployment,
            self._replica,
            self._number,
            metrics,
            status,
            generation=self.view["generation"],
            view=self.view["number"],
            draining=self.view["draining"],
            closing=closing,
        )
