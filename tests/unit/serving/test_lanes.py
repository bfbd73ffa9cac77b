"""The threads of the forward passes: all cores for a pass alone, one core each under load."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.lanes import Lanes

_own = threading.local()


def prepare(cores: int) -> None:
    _own.cores = cores


def cores_here() -> int:
    cores: int = _own.cores
    return cores


@pytest.fixture
def lanes():
    lanes = Lanes(2, prepare)
    yield lanes
    lanes.close()


async def test_a_pass_alone_has_all_cores_and_others_one(lanes):
    entered, go = threading.Semaphore(0), threading.Event()

    def forward() -> tuple[int, int]:
        entered.release()
        assert go.wait(timeout=20)
        return cores_here(), 10

    alone = asyncio.create_task(lanes.run(forward, alone=True))
    assert await asyncio.to_thread(entered.acquire, timeout=20)
    beside = asyncio.create_task(lanes.run(forward, alone=True))  # nothing waits, but one is computing
    assert await asyncio.to_thread(entered.acquire, timeout=20)
    assert lanes.running_s > 0
    go.set()
    assert await alone == 2
    assert await beside == 1
    assert await lanes.run(lambda: (cores_here(), 10), alone=False) == 1
    assert lanes.running_s == 0


async def test_time_is_estimated_from_the_passes_that_others_waited_for(lanes):
    assert lanes.seconds_for(1000) == 0.0
    await lanes.run(lambda: (None, 3), alone=True)  # a lone short text says nothing of a queue
    assert lanes.seconds_for(1000) == 0.0
    await lanes.run(lambda: (None, 1000), alone=False)
    first = lanes.seconds_for(1000)
    assert first > 0
    assert lanes.seconds_for(2000) == pytest.approx(2 * first)


async def test_a_shared_device_has_one_lane():
    lanes = Lanes(4, prepare, shared=True)
    assert lanes.count == 1
    assert await lanes.run(lambda: (cores_here(), 1), alone=False) == 4
    lanes.close()


async def test_an_error_is_the_callers_and_the_lane_goes_on(lanes):
    def fail() -> tuple[None, int]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lanes.run(fail, alone=True)
    assert lanes.running_s == 0
    assert await lanes.run(lambda: ("yes", 1), alone=True) == "yes"


def test_warming_up_uses_every_kind_of_thread(lanes):
    seen = []
    lanes.warm_up(lambda: seen.append(cores_here()))
    assert sorted(seen) == [1, 2]
