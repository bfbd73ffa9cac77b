"""Explanations on tiny real models, without Ray: answers, refusals, one at a time, and what is given up."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema import ServingConfig
from serve_app.answers import Explanation, Refusal
from serve_app.engine_process import EngineProcess, RemoteEngine
from serve_app.errors import ErrorCode
from serve_app.explaining import Explaining
from serve_app.follower import Loaded
from serve_app.metrics import ClassifierMetrics, render, snapshot
from serve_app.model_source import ModelVersion
from tests.tiny import write_tiny_model

LONG = "good " + "movie " * 100


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, engines: EngineProcess) -> Loaded:
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "model", rule=True)
    return Loaded(engines.load(folder, "auto", "cpu"), ModelVersion("model", "7", "source"), 0.0)


Make = Callable[..., Explaining]


@pytest.fixture
async def make(engines: EngineProcess) -> AsyncIterator[Make]:
    made = []

    def explaining(**serving: Any) -> Explaining:
        made.append(Explaining(ServingConfig.model_validate(serving), ClassifierMetrics(), engines))
        return made[-1]

    yield explaining
    for one in made:
        one.close()


class Held:
    """Holds every explanation at its first batch, until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go, self.ended = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
        self.computed = 0
        explain = RemoteEngine.explain

        def held(engine: Any, tokens: Any, label: int, steps: int, go_on: Callable[[], None]) -> Any:
            self.entered.release()
            try:
                assert self.go.wait(timeout=20)
                found = explain(engine, tokens, label, steps, go_on)
                self.computed += 1
                return found
            finally:
                self.ended.release()

        monkeypatch.setattr(RemoteEngine, "explain", held)

    async def has(self, event: threading.Semaphore) -> None:
        assert await asyncio.to_thread(event.acquire, timeout=20)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go.set()


def predicted(loaded: Loaded, text: str) -> np.ndarray:
    (probabilities,) = loaded.engine.forward([loaded.engine.tokenize([text]).tokens[0]])
    return probabilities


def text_of(explaining: Explaining) -> str:
    return render({("classifier", "r1"): snapshot(explaining._metrics.registry)})


async def test_the_word_that_decides_is_named(make, loaded):
    explaining = make()
    text = "The plot was good"
    answer = await explaining.explain(loaded, text, True, None)
    assert isinstance(answer, Explanation)
    assert (answer.version, answer.labels, answer.explained_label) == ("7", ("negative", "positive"), "positive")
    start, end, strongest = max(answer.words, key=lambda word: word[2])
    assert text[start:end] == "good"
    assert strongest > 3
    assert len(answer.words) == 4
    assert answer.probabilities == pytest.approx(predicted(loaded, text).tolist(), abs=1e-6)
    assert not answer.truncated
    assert "[PAD]" in answer.baseline
    assert set(answer.phases) == {"tokenize", "queue", "explain"}
    assert 'trialgate_explanations_total{deployment="classifier",replica="r1",version="7"} 1.0' in text_of(explaining)


async def test_the_other_label_has_the_opposite_signs(make, loaded):
    explaining = make(explain_steps=8)
    one = await explaining.explain(loaded, "a good plot", True, "positive")
    other = await explaining.explain(loaded, "a good plot", True, "negative")
    assert other.explained_label == "negative"
    for (_, _, here), (_, _, there) in zip(one.words, other.words, strict=True):
        assert here == pytest.approx(-there, abs=0.02)


@pytest.mark.parametrize("label", ["", "good", "POSITIVE", "\ud800", "x" * 5000])
async def test_a_label_that_is_none_is_refused_with_those_that_are(make, loaded, label):
    refusal = await make().explain(loaded, "good", True, label)
    assert refusal.code is ErrorCode.INVALID_REQUEST
    assert "negative, positive" in refusal.message
    assert len(refusal.message) < 200
    refusal.message.encode()


async def test_texts_that_are_too_long(make, loaded):
    explaining = make(explain_steps=1)
    cut = await explaining.explain(loaded, LONG, True, None)
    assert cut.truncated
    assert len(cut.words) == 62
    whole = await explaining.explain(loaded, LONG, False, None)
    assert whole.code is ErrorCode.TEXT_TOO_LONG
    assert "64" in whole.message
    short = make(explain_max_tokens=5)
    assert isinstance(await short.explain(loaded, "a good plot", True, None), Explanation)
    refusal = await short.explain(loaded, "a very good plot", True, None)
    assert refusal.code is ErrorCode.TEXT_TOO_LONG
    assert "6 tokens, at most 5" in refusal.message
    assert 'refused_total{code="text_too_long"' in text_of(short)


async def test_beyond_its_admission_it_refuses_at_once(make, loaded, held):
    explaining = make(explain_max_concurrent=2)
    first = asyncio.create_task(explaining.explain(loaded, "good", True, None))
    await held.has(held.entered)
    second = asyncio.create_task(explaining.explain(loaded, "bad", True, None))
    while explaining._admission.held < 2:  # noqa: ASYNC110 - there is no event to wait for, seen from outside
        await asyncio.sleep(0.001)
    refusal = await explaining.explain(loaded, "fine", True, None)
    assert refusal.code is ErrorCode.OVERLOADED
    assert refusal.retry_after_s >= 1
    assert (await explaining.explain(loaded, LONG, False, None)).code is ErrorCode.TEXT_TOO_LONG  # 422 goes before 429
    assert held.computed == 0
    held.go.set()
    assert isinstance(await first, Explanation)
    assert (await second).phases["queue"] > 0
    assert isinstance(await explaining.explain(loaded, "fine", True, None), Explanation)


async def test_who_goes_away_leaves_no_work_behind(make, loaded, held):
    explaining = make(explain_max_concurrent=1)
    gone = asyncio.create_task(explaining.explain(loaded, "good", True, None))
    await held.has(held.entered)
    gone.cancel()
    await asyncio.wait([gone])
    held.go.set()
    await held.has(held.ended)
    assert held.computed == 0
    assert isinstance(await explaining.explain(loaded, "fine", True, None), Explanation)
    assert held.computed == 1


async def test_a_deadline_that_passes_on_the_way(make, loaded):
    explaining = make()
    assert await explaining.explain(loaded, "good", True, None, remaining_s=0.0) == Refusal(ErrorCode.DEADLINE_EXCEEDED)
    assert 'refused_total{code="deadline_exceeded"' in text_of(explaining)


async def test_gradients_that_are_not_finite_are_an_error(make, loaded, monkeypatch):
    monkeypatch.setattr(loaded.engine, "forward", lambda rows: np.full((1, 2), np.nan))
    assert await make().explain(loaded, "good", True, None) == Refusal(ErrorCode.INTERNAL)


async def test_its_thread_in_the_engines_process_steps_back(make, loaded, engines):
    before = priorities(engines)
    await make().explain(loaded, "good", True, None)
    (added,) = (nice for thread, nice in priorities(engines).items() if thread not in before)
    assert added == 19
    assert priorities(engines)[engines.pid] == before[engines.pid] < 19


def priorities(engines: EngineProcess) -> dict[int, int]:
    threads = [int(path.name) for path in Path(f"/proc/{engines.pid}/task").iterdir()]
    return {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


async def test_the_models_of_every_family_are_explained(make, engines, tmp_path: Path):
    explaining = make(explain_steps=4)
    for family in ("distilbert", "avgnet", "cnet", "rnn"):
        engine = engines.load(write_tiny_model(tmp_path / family, family=family), "auto", "cpu")
        answer = await explaining.explain(
            Loaded(engine, ModelVersion("model", "1", "s"), 0.0), "a good plot", True, None
        )
        assert [words[:2] for words in answer.words] == [(0, 1), (2, 6), (7, 11)]
