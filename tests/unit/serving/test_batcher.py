"""The batcher with an echo model: nothing lost, nothing crossed, budgets kept, nobody starves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.batcher import Admission, Batcher, BatcherClosed, BatchRecord, DeadlineExceeded, Outcome


class EchoModel:
    """Answers every item with itself, and keeps the batches. ``hold`` stops it inside a batch until ``go``."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.entered = threading.Semaphore(0)
        self.may_go = threading.Event()
        self.may_go.set()
        self.bad: set[object] = set()

    def hold(self) -> None:
        self.may_go.clear()

    def go(self) -> None:
        self.may_go.set()

    def __call__(self, items: list[object]) -> list[object]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.may_go.wait(timeout=20)
        if any(item in self.bad for item in items):
            raise ValueError(f"cannot compute {[item for item in items if item in self.bad]}")
        return [("echo", item) for item in items]

    async def wait_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def model() -> EchoModel:
    return EchoModel()


def in_threads(model: Callable[[list[object]], list[object]], executor: ThreadPoolExecutor) -> Callable[..., object]:
    """What a batcher calls: ``model`` in a thread of ``executor``."""

    def compute(take: Callable[[], list[object]]) -> list[object]:
        return model(items) if (items := take()) else []

    async def run(take: Callable[[], list[object]]) -> list[object]:
        return await asyncio.get_running_loop().run_in_executor(executor, compute, take)

    return run


@pytest.fixture
def make(model: EchoModel) -> Iterator[Callable[..., Batcher]]:
    with contextlib.ExitStack() as pools:

        def batcher(max_tokens: int = 100, max_texts: int = 8, lanes: int = 1, **options: object) -> Batcher:
            run = in_threads(model, pools.enter_context(ThreadPoolExecutor(lanes)))
            return Batcher(run, max_tokens=max_tokens, max_texts=max_texts, lanes=lanes, **options)

        yield batcher
        model.go()  # whatever a failed test has left in there


async def held_by(batcher: Batcher, model: EchoModel) -> asyncio.Task[Outcome]:
    """Occupies the model with one item, so that what follows has to wait."""
    model.hold()
    task = asyncio.create_task(batcher.submit(["first"], [1]))
    await model.wait_entered()
    return task


async def start(batcher: Batcher, *requests: tuple[list[object], list[int]]) -> list[asyncio.Task[Outcome]]:
    """Submits each request in its own task, in this order."""
    tasks = [asyncio.create_task(batcher.submit(items, sizes)) for items, sizes in requests]
    await asyncio.sleep(0)
    return tasks


async def test_idle_model_answers_at_once_and_alone(make, model):
    outcome = await make().submit(["a"], [3])
    assert outcome.results == [("echo", "a")]
    assert model.batches == [["a"]]


async def test_requests_that_wait_together_share_a_batch(make, model):
    batcher = make()
    first = await held_by(batcher, model)
    tasks = await start(batcher, (["a", "b"], [2, 2]), (["c"], [2]))
    model.go()
    assert [(await task).results for task in tasks] == [[("echo", "a"), ("echo", "b")], [("echo", "c")]]
    assert model.batches == [["first"], ["a", "b", "c"]]
    assert (await first).results == [("echo", "first")]


async def test_oldest_is_never_passed_over_and_later_ones_that_fit_are_taken(make, model):
    batcher = make(max_tokens=10)
    await held_by(batcher, model)
    tasks = await start(batcher, (["big"], [9]), (["wide"], [5]), (["small"], [1]), (["tiny"], [1]))
    model.go()
    await asyncio.gather(*tasks)
    assert model.batches[1:] == [["big", "small"], ["wide", "tiny"]]


async def test_item_over_the_budget_goes_alone(make, model):
    batcher = make(max_tokens=10)
    await held_by(batcher, model)
    tasks = await start(batcher, (["huge"], [50]), (["a"], [1]))
    model.go()
    await asyncio.gather(*tasks)
    assert model.batches[1:] == [["huge"], ["a"]]


async def test_one_bad_item_fails_its_request_alone(make, model):
    batcher, model.bad = make(), {"bad"}
    await held_by(batcher, model)
    good, bad, also_good = await start(batcher, (["a", "b"], [1, 1]), (["c", "bad"], [1, 1]), (["d"], [1]))
    model.go()
    assert (await good).results == [("echo", "a"), ("echo", "b")]
    assert (await also_good).results == [("echo", "d")]
    with pytest.raises(ValueError, match="cannot compute"):
        await bad


async def test_cancelled_request_is_not_computed(make, model):
    batcher = make()
    await held_by(batcher, model)
    gone, stays = await start(batcher, (["gone"], [1]), (["stays"], [1]))
    gone.cancel()
    await asyncio.wait([gone])
    model.go()
    await stays
    assert model.batches[1:] == [["stays"]]


async def test_expired_request_is_not_computed(make, model):
    now = [0.0]
    batcher = make(clock=lambda: now[0])
    await held_by(batcher, model)
    late = asyncio.create_task(batcher.submit(["late"], [1], deadline=5.0))
    stays = asyncio.create_task(batcher.submit(["stays"], [1], deadline=50.0))
    await asyncio.sleep(0)
    now[0] = 5.0
    model.go()
    with pytest.raises(DeadlineExceeded):
        await late
    assert (await stays).queue_s == 5.0
    assert model.batches[1:] == [["stays"]]


async def test_closing_answers_what_waits_and_takes_nothing_new(make, model):
    batcher = make()
    first = await held_by(batcher, model)
    (waiting,) = await start(batcher, (["a"], [1]))
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(BatcherClosed):
        await batcher.submit(["b"], [1])
    model.go()
    await closing
    assert first.done()
    assert (await waiting).results == [("echo", "a")]


async def test_wrong_number_of_results_is_an_error_not_a_mixture(executor):
    batcher = Batcher(in_threads(lambda items: items[:-1], executor), max_tokens=10, max_texts=4)
    with pytest.raises(RuntimeError, match="0 results for 1"):
        await batcher.submit(["a"], [1])


async def test_every_forward_pass_is_recorded(make, model):
    records: list[BatchRecord] = []
    batcher = make(observe=records.append)
    await held_by(batcher, model)
    tasks = await start(batcher, (["a", "b"], [2, 3]))
    model.go()
    await asyncio.gather(*tasks)
    assert [(record.texts, record.tokens, record.failed) for record in records] == [(1, 1, False), (2, 5, False)]
    assert all(wait >= 0 for record in records for wait in record.queue_s)


async def test_a_recorder_that_fails_harms_no_answer(make):
    def observe(record: BatchRecord) -> None:
        raise RuntimeError("no metrics today")

    assert (await make(observe=observe).submit(["a"], [1])).results == [("echo", "a")]


def test_admission_is_whole_or_not_at_all():
    admission = Admission(5)
    assert admission.try_acquire(3)
    assert not admission.try_acquire(3)
    assert admission.held == 3
    assert admission.try_acquire(2)
    admission.release(5)
    with pytest.raises(RuntimeError):
        admission.release(1)


requests = st.lists(st.lists(st.integers(1, 14), min_size=1, max_size=5), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(sizes=requests, cancelled=st.sets(st.integers(0, 24)), bad=st.sets(st.integers(0, 24)), data=st.data())
def test_nothing_lost_nothing_crossed_budget_kept(sizes, cancelled, bad, data):
    """Random requests, some cancelled while they wait, some bad: every other one gets exactly its own answers."""
    max_tokens, max_texts = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    model, seen = EchoModel(), []

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as executor:
            run = in_threads(model, executor)
            batcher = Batcher(run, max_tokens=max_tokens, max_texts=max_texts, observe=seen.append)
            first = await held_by(batcher, model)
            items = [
                [(request, place) for place in range(len(request_sizes))] for request, request_sizes in enumerate(sizes)
            ]
            model.bad = {(request, 0) for request in bad}
            tasks = await start(batcher, *zip(items, sizes, strict=True))
            for request in cancelled & set(range(len(sizes))):
                tasks[request].cancel()
            model.go()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await first
            for request, outcome in enumerate(outcomes):
                if request in cancelled:
                    assert isinstance(outcome, asyncio.CancelledError)
                elif request in bad:
                    assert isinstance(outcome, ValueError)
                else:
                    assert outcome.results == [("echo", item) for item in items[request]]
            assert batcher.waiting_tokens == 0

    asyncio.run(scenario())
    size_of = {(request, place): size for request, row in enumerate(sizes) for place, size in enumerate(row)}
    size_of["first"] = 1
    for batch in model.batches:
        assert len(batch) <= max_texts
        assert len(batch) == 1 or sum(size_of[item] for item in batch) <= max_tokens
    computed = {item for batch in model.batches for item in batch if item != "first"}
    assert not {request for request, _ in computed} & cancelled
    if not bad:  # each text is computed once, and the oldest one that waits is in every batch
        flat = [item for batch in model.batches[1:] for item in batch]
        waiting = [item for item in size_of if item != "first" and item[0] not in cancelled]
        assert sorted(flat) == waiting
        for batch in model.batches[1:]:
            assert waiting[0] in batch
            waiting = [item for item in waiting if item not in batch]


def test_impossible_budgets_are_refused():
    with pytest.raises(ValueError, match="max_tokens"):
        Batcher(make_nothing, max_tokens=0, max_texts=1)
    with pytest.raises(ValueError, match="lanes"):
        Batcher(make_nothing, max_tokens=1, max_texts=1, lanes=0)


async def make_nothing(take: Callable[[], list[object]]) -> list[object]:
    return take()


async def test_lanes_compute_side_by_side(make, model):
    batcher = make(max_texts=2, lanes=2)
    first = await held_by(batcher, model)
    tasks = await start(batcher, (["a"], [1]), (["b"], [1]), (["c"], [1]))
    await model.wait_entered()  # the second lane, while the first still computes
    assert model.batches == [["first"], ["a", "b"]]
    model.go()
    await asyncio.gather(first, *tasks)
    assert model.batches[2:] == [["c"]]


async def has(batcher: Batcher, *, calls: int, waiting: int) -> None:
    """Waits until so many calls of the model are open and so many texts wait."""
    async with asyncio.timeout(20):
        while (len(batcher._workers), batcher.waiting_texts) != (calls, waiting):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0)


async def test_one_large_request_has_all_lanes(make, model):
    batcher = make(max_tokens=4, lanes=2)
    model.hold()
    (task,) = await start(batcher, (["a", "b", "c"], [2, 2, 2]))
    await model.wait_entered()
    await model.wait_entered()
    assert sorted(model.batches) == [["a", "b"], ["c"]]
    model.go()
    assert (await task).results == [("echo", item) for item in ("a", "b", "c")]


async def test_full_batches_are_formed_ahead_one_for_each_lane(make, model):
    batcher = make(max_tokens=4)
    first = await held_by(batcher, model)
    a, b = await start(batcher, (["a"], [2]), (["b"], [1]))
    await has(batcher, calls=1, waiting=2)  # not full: who comes later may join them
    (c,) = await start(batcher, (["c"], [1]))
    await has(batcher, calls=2, waiting=0)
    assert batcher.tokens_ahead == 4
    d, e = await start(batcher, (["d"], [4]), (["e"], [4]))
    for _ in range(5):
        await asyncio.sleep(0)
    await has(batcher, calls=2, waiting=2)  # one is enough
    assert batcher.tokens_ahead == 12  # neither what waits nor what was formed is being computed
    assert model.batches == [["first"]]
    model.go()
    await asyncio.gather(first, a, b, c, d, e)
    assert model.batches == [["first"], ["a", "b", "c"], ["d"], ["e"]]
    await has(batcher, calls=0, waiting=0)
    assert batcher.tokens_ahead == 0


async def test_what_was_given_up_or_is_late_is_not_computed_though_its_batch_was_formed(make, model):
    now, seen = [100.0], []
    batcher = make(max_tokens=4, clock=lambda: now[0], observe=seen.append)
    first = await held_by(batcher, model)
    gone, kept = await start(batcher, (["gone"], [1]), (["kept"], [1]))
    late = asyncio.create_task(batcher.submit(["late"], [2], deadline=101.0))
    await has(batcher, calls=2, waiting=0)
    gone.cancel()
    now[0] = 102.0
    model.go()
    assert (await kept).results == [("echo", "kept")]
    with pytest.raises(DeadlineExceeded):
        await late
    await first
    assert model.batches == [["first"], ["kept"]]
    assert [(record.texts, record.queue_s) for record in seen] == [(1, (0.0,)), (1, (2.0,))]


async def test_a_batch_that_was_formed_ahead_and_given_up_whole_leaves_no_trace(make, model):
    seen = []
    batcher = make(max_tokens=2, observe=seen.append)
    first = await held_by(batcher, model)
    (gone,) = await start(batcher, (["gone"], [2]))
    await has(batcher, calls=2, waiting=0)
    gone.cancel()
    model.go()
    await first
    assert (await batcher.submit(["next"], [1])).results == [("echo", "next")]
    assert model.batches == [["first"], ["next"]]
    assert len(seen) == 2


async def test_closing_waits_for_every_lane(make, model):
    batcher = make(max_texts=1, lanes=2)
    first = await held_by(batcher, model)
    (second,) = await start(batcher, (["a"], [1]))
    await model.wait_entered()
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    assert not closing.done()
    model.go()
    await closing
    assert first.done()
    assert second.done()


async def test_what_comes_as_the_last_worker_ends_is_not_forgotten(make):
    batcher = make()
    for _ in range(50):  # each comes in the very turn of the loop in which the one before was answered
        assert (await asyncio.wait_for(batcher.submit(["a"], [1]), 20)).results == [("echo", "a")]
