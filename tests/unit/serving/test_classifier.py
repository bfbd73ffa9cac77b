"""The classifier on tiny real models, without Ray: answers, refusals, admission, swaps."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Settings
from serve_app.answers import Answer, Explanation, Refusal
from serve_app.classifier import Classifier
from serve_app.engine_process import EngineGone, EngineProcess
from serve_app.errors import ErrorCode
from serve_app.model_source import ModelVersion
from serve_app.schemas import Replica
from tests.tiny import write_tiny_model

LONG = "good " + "movie " * 100


class FolderAlias:
    """A registry of model folders."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.current: str | None = None

    def find(self) -> ModelVersion | None:
        return None if self.current is None else ModelVersion("model", self.current, self.current, "run", 0.9)

    def download(self, version: ModelVersion, into: Path) -> None:
        shutil.copytree(self.folders[version.version], into / "model")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {str(seed): write_tiny_model(folder / str(seed), seed=seed, rule=True) for seed in (1, 2)}


@pytest.fixture
def alias(models: dict[str, Path]) -> FolderAlias:
    alias = FolderAlias()
    alias.folders = models
    return alias


Start = Callable[..., Awaitable[Classifier]]


@pytest.fixture
async def start(alias: FolderAlias, tmp_path: Path, engines: EngineProcess) -> AsyncIterator[Start]:
    started: list[Classifier] = []

    async def start_classifier(**serving: Any) -> Classifier:
        settings = Settings.model_validate(
            {
                "tracking": {"uri": "sqlite:////nowhere", "model_name": "model"},
                "serving": {"cache_dir": str(tmp_path), "poll_interval_s": 0.02, **serving},
            }
        )
        classifier = Classifier(settings, "r1", alias=alias, engines=engines)
        started.append(classifier)
        await classifier.start()
        return classifier

    yield start_classifier
    for classifier in started:
        await classifier.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - there is no event to wait for, seen from outside
            await asyncio.sleep(0.005)


async def test_answers_all_texts_in_order(start, alias):
    alias.current = "1"
    classifier = await start()
    answer = await classifier.classify(["a good movie", "an awful movie", LONG], True)
    assert isinstance(answer, Answer)
    assert answer.version == "1"
    best = [answer.labels[row.index(max(row))] for row in answer.probabilities]
    assert best == ["positive", "negative", "positive"]
    assert answer.truncated == [False, False, True]
    assert set(answer.phases) == {"tokenize", "queue", "forward"}
    status = classifier.status()
    Replica.model_validate(status, extra="forbid")  # as the OpenAPI document has it
    assert status["ready"]
    assert (status["version"], status["run_id"], status["f1"], status["max_length"]) == ("1", "run", 0.9, 64)


async def test_many_at_once_are_never_mixed_up(start, alias):
    alias.current = "1"
    classifier = await start(max_batch_texts=5)
    texts = [f"{'good' if number % 3 else 'bad'} {'movie ' * (number % 20)}" for number in range(100)]
    answers = await asyncio.gather(*(classifier.classify([text], True) for text in texts))
    for text, answer in zip(texts, answers, strict=True):
        assert (answer.probabilities[0][1] > 0.5) is ("good" in text)


async def test_no_model_yet(start, alias):
    classifier = await start()
    assert await classifier.classify(["a"], True) == Refusal(ErrorCode.NOT_READY)
    assert not classifier.status()["ready"]
    alias.current = "1"
    await until(lambda: classifier.status()["ready"])
    assert isinstance(await classifier.classify(["a"], True), Answer)


async def test_too_long_without_truncation(start, alias):
    alias.current = "1"
    refusal = await (await start()).classify(["fine", LONG], False)
    assert refusal.code is ErrorCode.TEXT_TOO_LONG
    assert "Text 2 of 2 has 103 tokens, the model takes 64" in refusal.message


class Gate:
    """Holds the engine of a classifier inside its next forward pass."""

    def __init__(self, classifier: Classifier) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        engine = classifier._served.loaded.engine
        forward = engine.forward

        def held(rows: Any) -> Any:
            self.entered.set()
            assert self.go.wait(timeout=20)
            return forward(rows)

        engine.forward = held


async def test_admission_takes_whole_requests_and_comes_back(start, alias):
    alias.current = "1"
    classifier = await start(max_concurrent_texts=4, max_client_batch_size=4)
    gate = Gate(classifier)
    first = asyncio.create_task(classifier.classify(["good"] * 3, True))
    await asyncio.to_thread(gate.entered.wait, 20)
    refusal = await classifier.classify(["a", "b"], True)
    assert refusal.code is ErrorCode.OVERLOADED
    assert refusal.retry_after_s >= 1
    assert (await classifier.classify([LONG, LONG], False)).code is ErrorCode.TEXT_TOO_LONG  # 422 goes before 429
    assert classifier.demand() == {"texts": 3, "refused_texts": 2}
    fits = asyncio.create_task(classifier.classify(["a"], True))
    await asyncio.sleep(0)
    gate.go.set()
    assert isinstance(await first, Answer)
    assert isinstance(await fits, Answer)
    assert isinstance(await classifier.classify(["a"] * 4, True), Answer)
    assert classifier.demand() == {"texts": 0, "refused_texts": 0}


async def test_cancelled_requests_give_their_places_back(start, alias):
    alias.current = "1"
    classifier = await start(max_concurrent_texts=4, max_client_batch_size=4)
    gate = Gate(classifier)
    gone = asyncio.create_task(classifier.classify(["good"] * 4, True))
    await asyncio.to_thread(gate.entered.wait, 20)
    gone.cancel()
    await asyncio.wait([gone])
    gate.go.set()
    assert isinstance(await classifier.classify(["a"] * 4, True), Answer)


async def test_deadline_that_passed_while_waiting(start, alias):
    alias.current = "1"
    classifier = await start()
    gate = Gate(classifier)
    first = asyncio.create_task(classifier.classify(["good"], True))
    await asyncio.to_thread(gate.entered.wait, 20)
    late = asyncio.create_task(classifier.classify(["good"], True, remaining_s=0.0))
    await until(lambda: classifier._served.batcher.waiting_tokens > 0)
    gate.go.set()
    assert (await late).code is ErrorCode.DEADLINE_EXCEEDED
    assert isinstance(await first, Answer)


@pytest.mark.parametrize(
    ("serving", "remaining_s"),
    [
        pytest.param({"max_queue_ms": 1000}, 60.0, id="longer than texts may wait"),
        pytest.param({}, 1.0, id="into its deadline"),
        pytest.param({"max_queue_ms": 1000, "max_batch_texts": 1}, 60.0, id="behind a batch that was formed ahead"),
    ],
)
async def test_what_would_wait_too_long_is_refused_at_once(start, alias, monkeypatch, serving, remaining_s):
    alias.current = "1"
    classifier = await start(**serving)
    monkeypatch.setattr(classifier._lanes, "seconds_for", lambda tokens: 1.5 if tokens else 0.0)
    gate = Gate(classifier)
    computing = asyncio.create_task(classifier.classify(["good"], True))
    await asyncio.to_thread(gate.entered.wait, 20)
    waiting = asyncio.create_task(classifier.classify(["good"], True))
    batcher, is_formed = classifier._served.batcher, "max_batch_texts" in serving
    await until(lambda: batcher.tokens_ahead > 0 and (batcher.waiting_tokens == 0) is is_formed)
    refused = await classifier.classify(["good"], True, remaining_s=remaining_s)
    assert isinstance(refused, Refusal)
    assert refused.code is ErrorCode.OVERLOADED
    assert refused.retry_after_s == 2
    gate.go.set()
    assert isinstance(await computing, Answer)
    assert isinstance(await waiting, Answer)


async def test_swap_leaves_requests_in_work_on_their_version(start, alias):
    alias.current = "1"
    classifier = await start()
    gate = Gate(classifier)
    old = asyncio.create_task(classifier.classify(["good"] * 3, True))
    await asyncio.to_thread(gate.entered.wait, 20)
    alias.current = "2"
    await until(lambda: classifier.status()["version"] == "2")
    new = asyncio.create_task(classifier.classify(["good"], True))
    gate.go.set()
    assert (await old).version == "1"
    assert (await new).version == "2"


async def test_a_version_that_is_not_served_any_more_leaves_the_memory_at_once(start, alias):
    alias.current = "1"
    classifier = await start()
    assert isinstance(await classifier.classify(["good"], True), Answer)
    old = weakref.ref(classifier._served.loaded.engine)
    gc.disable()  # which may be long in coming, with models of hundreds of megabytes
    try:
        alias.current = "2"
        await until(lambda: classifier.status()["version"] == "2" and old() is None)
    finally:
        gc.enable()


async def test_output_that_is_not_finite_fails_that_request_alone(start, alias):
    alias.current = "1"
    classifier = await start()
    engine = classifier._served.loaded.engine
    forward, poison = engine.forward, engine.tokenize(["awful"]).tokens[0].tolist()

    def spoilt(rows: Any) -> Any:
        probabilities = forward(rows)
        for place, row in enumerate(rows):
            if row.tolist() == poison:
                probabilities[place] = float("nan")
        return probabilities

    engine.forward = spoilt
    good, bad, also_good = await asyncio.gather(
        classifier.classify(["good"], True), classifier.classify(["awful"], True), classifier.classify(["fine"], True)
    )
    assert isinstance(good, Answer)
    assert isinstance(also_good, Answer)
    assert bad.code is ErrorCode.INTERNAL


async def test_broken_version_keeps_the_old_one(start, alias, models, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(models["2"], broken)
    (broken / "model.safetensors").unlink()
    alias.folders = {**models, "3": broken}
    alias.current = "1"
    classifier = await start()
    alias.current = "3"
    await until(lambda: classifier.status()["load_errors"])
    status = classifier.status()
    Replica.model_validate(status, extra="forbid")  # as the OpenAPI document has it
    assert (status["version"], status["desired_version"]) == ("1", "3")
    assert "model.safetensors" in status["load_errors"][0]["error"]
    assert isinstance(await classifier.classify(["good"], True), Answer)
    classifier.check_health()


async def test_closing_refuses_as_draining(start, alias):
    alias.current = "1"
    classifier = await start()
    await classifier.close()
    assert (await classifier.classify(["a"], True)).code is ErrorCode.DRAINING
    assert not classifier.status()["ready"]


async def test_forward_pass_that_hangs_is_unhealthy(start, alias, monkeypatch):
    alias.current = "1"
    classifier = await start()
    classifier.check_health()
    gate = Gate(classifier)
    waiting = asyncio.create_task(classifier.classify(["good"], True))
    await asyncio.to_thread(gate.entered.wait, 20)
    monkeypatch.setattr("serve_app.classifier._STUCK_S", 0.0)
    with pytest.raises(RuntimeError, match="forward pass has been running"):
        classifier.check_health()
    gate.go.set()
    await waiting


async def test_without_its_engines_it_is_broken_and_leaves_predictions_unanswered(alias, tmp_path, monkeypatch):
    alias.current = "1"
    broken = threading.Event()
    settings = Settings.model_validate(
        {
            "tracking": {"uri": "sqlite:////nowhere", "model_name": "model"},
            "serving": {"cache_dir": str(tmp_path), "poll_interval_s": 0.02},
        }
    )
    classifier = Classifier(settings, "r1", alias=alias, on_broken=broken.set)
    await classifier.start()
    assert isinstance(await classifier.classify(["good"], True), Answer)
    os.kill(classifier._engines.pid, signal.SIGKILL)
    assert await asyncio.to_thread(broken.wait, 20)
    assert await classifier.explain("good", True, None) == Refusal(ErrorCode.NOT_READY)
    # For HAProxy to repeat elsewhere when the process ends.
    left = asyncio.create_task(classifier.classify(["good"], True))
    assert await asyncio.wait([left], timeout=0.5) == (set(), {left})
    left.cancel()
    monkeypatch.setattr("serve_app.classifier._LEFT_UNANSWERED_S", 0.0)
    assert await classifier.classify(["good"], True) == Refusal(ErrorCode.NOT_READY)
    with pytest.raises(RuntimeError, match="process has ended"):
        classifier.check_health()
    await classifier.close()


async def test_where_only_a_channel_broke_the_answer_comes_at_once(start, alias, monkeypatch):
    alias.current = "1"
    classifier = await start()
    await until(lambda: classifier.status()["ready"])

    def forward(*_: object) -> None:
        raise EngineGone(ended=False)

    with monkeypatch.context() as broken:
        broken.setattr(classifier._served.loaded.engine, "forward", forward)
        refusal = await asyncio.wait_for(classifier.classify(["good"], True), 4)
    assert refusal == Refusal(ErrorCode.NOT_READY)
    assert isinstance(await classifier.classify(["good"], True), Answer)


async def test_explanations_go_beside_predictions(start, alias):
    classifier = await start()
    assert await classifier.explain("good", True, None) == Refusal(ErrorCode.NOT_READY)
    alias.current = "1"
    await until(lambda: classifier.status()["ready"])
    gate = Gate(classifier)
    held = asyncio.create_task(classifier.classify(["good"], True))
    await asyncio.to_thread(gate.entered.wait, 20)
    refusal = await classifier.explain("good", True, "no such label")
    assert refusal.code is ErrorCode.INVALID_REQUEST
    gate.go.set()
    await held
    answer = await classifier.explain("good", True, None)
    assert isinstance(answer, Explanation)
    assert answer.version == "1"
    await classifier.close()
    assert await classifier.explain("good", True, None) == Refusal(ErrorCode.DRAINING)


async def test_metrics_know_the_version_the_queue_and_the_tokens(start, alias):
    alias.current = "1"
    classifier = await start()
    value = classifier.metrics.registry.get_sample_value
    precision = classifier.status()["precision"]
    assert value("trialgate_model_info", {"version": "1", "precision": precision}) == 1
    gate = Gate(classifier)
    first = asyncio.create_task(classifier.classify(["good"], True))
    await asyncio.to_thread(gate.entered.wait, 20)
    waiting = asyncio.create_task(classifier.classify(["a good plot", "bad"], True))
    await until(lambda: value("trialgate_queue_texts") == 2)
    assert value("trialgate_queue_tokens") == 8  # with [CLS] and [SEP]
    gate.go.set()
    await asyncio.gather(first, waiting)
    assert value("trialgate_queue_texts") == value("trialgate_queue_tokens") == 0
    assert value("trialgate_tokens_total") == 11
    alias.current = "2"
    await until(lambda: classifier.status()["version"] == "2")
    assert value("trialgate_model_info", {"version": "1", "precision": precision}) is None
    assert value("trialgate_model_info", {"version": "2", "precision": precision}) == 1
    assert value("trialgate_model_swaps_total") == 2
