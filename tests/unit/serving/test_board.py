"""The board and its reporters without Ray: one view for all, fresh counters, totals that never fall."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from serve_app import board as board_module
from serve_app.board import KEPT_DEAD, LIVE_S, Board, Report, Reporter
from serve_app.metrics import snapshot


class Replica:
    """A replica with one counter and one gauge, reporting to a board."""

    def __init__(self, board: Board, deployment: str, name: str) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("work", "Work done.", registry=self.registry)
        self.gauge = Gauge("load", "Load now.", registry=self.registry)
        self.status: dict[str, Any] | None = None
        if deployment == "classifier":
            self.status = {"replica": name, "ready": False, "version": None}
        self.reporter = Reporter(
            deployment, name, lambda: (snapshot(self.registry), self.status and dict(self.status)),
            sync=board.sync, push=board.push, scrape=board.scrape,
        )  # fmt: skip


def values(text: str, name: str) -> dict[str, float]:
    """Value by replica of one series."""
    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def board(clock: list[float]) -> Board:
    return Board(clock=lambda: clock[0])


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - there is no event to wait for, seen from outside
            await asyncio.sleep(0.001)


async def test_news_of_one_replica_reaches_the_others_at_once(board):
    gateway, classifier = Replica(board, "gateway", "g"), Replica(board, "classifier", "c")
    gateway.reporter.start()
    classifier.reporter.start()
    await until(lambda: gateway.reporter.view["replicas"])
    classifier.status = {"replica": "c", "ready": True, "version": "1"}
    classifier.reporter.news()
    async with asyncio.timeout(board_module.HEARTBEAT_S / 2):
        await until(lambda: gateway.reporter.view["replicas"][0]["ready"])
    await board.drain()
    await until(lambda: gateway.reporter.view["draining"])
    await classifier.reporter.stop()
    await until(lambda: gateway.reporter.view["replicas"] == [])
    await gateway.reporter.stop()


async def test_scrape_has_what_everybody_counted_up_to_now(board):
    replicas = [Replica(board, "gateway", "g1"), Replica(board, "gateway", "g2"), Replica(board, "classifier", "c1")]
    for replica in replicas:
        replica.reporter.start()
    await until(lambda: len(board._reports) == 3)
    for total in range(1, 6):
        for replica in replicas:
            replica.counter.inc()
        text = await replicas[total % 2].reporter.metrics_text()
        assert values(text, "work_total") == {"g1": total, "g2": total, "c1": total}
    for replica in replicas:
        await replica.reporter.stop()


async def test_scrape_does_not_wait_for_a_replica_that_hangs(board, monkeypatch):
    monkeypatch.setattr(board_module, "FRESH_S", 0.01)
    hanging, asking = Replica(board, "gateway", "hanging"), Replica(board, "gateway", "asking")
    hanging.counter.inc(5)
    await board.push(hanging.reporter._report())
    assert values(await asking.reporter.metrics_text(), "work_total") == {"hanging": 5, "asking": 0}


async def test_counters_of_the_dead_stay_and_their_gauges_go(board, clock):
    dead, alive = Replica(board, "classifier", "dead"), Replica(board, "gateway", "alive")
    dead.counter.inc(3)
    dead.gauge.set(9)
    await board.push(dead.reporter._report())
    clock[0] += LIVE_S + 1
    text = await alive.reporter.metrics_text()
    assert values(text, "work_total") == {"dead": 3, "alive": 0}
    assert values(text, "load") == {"alive": 0}
    assert board.view()["replicas"] == []


async def test_many_dead_are_summed_up_and_the_total_stays(board):
    alive = Replica(board, "gateway", "alive")
    for number in range(KEPT_DEAD + 10):
        replica = Replica(board, "gateway", f"r{number}")
        replica.counter.inc(2)
        await board.push(replica.reporter._report(closing=True))
    work = values(await alive.reporter.metrics_text(), "work_total")
    assert sum(work.values()) == 2 * (KEPT_DEAD + 10)
    assert work["retired"] == 20
    assert len(work) == KEPT_DEAD + 2


async def test_overtaken_report_is_not_taken(board):
    replica = Replica(board, "gateway", "g")
    replica.counter.inc(1)
    early = replica.reporter._report()
    replica.counter.inc(1)
    await board.push(replica.reporter._report())
    await board.push(early)
    asking = Replica(board, "gateway", "asking")
    assert values(await asking.reporter.metrics_text(), "work_total")["g"] == 2


async def test_reporter_outlives_its_board(board, monkeypatch):
    monkeypatch.setattr(board_module, "HEARTBEAT_S", 0.01)
    current: list[Board | None] = [board]

    async def sync(report: Report) -> dict[str, Any]:
        if current[0] is None:
            raise ConnectionError("the board is gone")
        return await current[0].sync(report)

    status = {"replica": "c", "ready": True, "version": "1"}
    reporter = Reporter("classifier", "c", lambda: ([], status), sync=sync, push=board.push, scrape=board.scrape)
    reporter.start()
    await until(lambda: reporter.view["replicas"])
    await board.drain()
    await until(lambda: reporter.view["draining"])
    current[0] = None
    await asyncio.sleep(0.05)
    assert reporter.view["replicas"] == [status]
    current[0] = successor = Board()
    await until(lambda: successor.view()["draining"])  # what was draining does not begin to admit again
    assert successor.view()["replicas"] == [status]
    await successor.push(Report("classifier", "another", 1, [], {"replica": "another", "ready": True, "version": "1"}))
    await until(lambda: len(reporter.view["replicas"]) == 2)  # the successor's view, though its numbers are lower
    assert reporter.view["draining"]
    await reporter.stop()
