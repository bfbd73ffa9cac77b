"""Engines in a process of their own: the same answers and errors as here, and nothing left when either side ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from serve_app.engine_process import EngineError, EngineGone, EngineProcess
from serve_app.engine_worker import use_threads
from serve_app.inference.engine import Engine
from serve_app.inference.folder import ModelFolderError
from tests.tiny import write_tiny_model

TEXTS = ["a good movie", "awful", "good " * 80]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", rule=True)


@pytest.fixture
def own() -> EngineProcess:
    """A process that the test may spoil."""
    return EngineProcess()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_forgotten(engines: EngineProcess, number: int) -> bool:
    try:
        until(lambda: engines.call("warm_up", number) is not None)
    except EngineError as error:
        return "KeyError" in str(error)
    return False


def test_it_is_the_engine(engines, folder):
    there, here = engines.load(folder, "auto", "cpu"), Engine.load(folder, precision="auto", device="cpu")
    tokens = there.tokenize(TEXTS).tokens
    assert np.array_equal(there.forward(list(tokens)), here.forward(list(here.tokenize(TEXTS).tokens)))
    for name in ("labels", "max_length", "precision", "precision_reason", "device_type", "weights_digest"):
        assert getattr(there, name) == getattr(here, name)
    located = there.locate("a good movie")
    assert there.explain(located, 1, 4, lambda: None) == here.explainer().explain(located, 1, 4)


def test_what_is_wrong_with_a_model_comes_over(engines, folder, tmp_path):
    with pytest.raises(ModelFolderError, match="is not a folder"):
        engines.load(tmp_path / "nothing", "auto", "cpu")
    with pytest.raises(EngineError, match="KeyError: 12345") as failed:
        engines.call("forward", 12345, np.zeros(1, np.int32), np.ones(1, np.int64))
    assert "engine_worker.py" in failed.value.__notes__[0]  # where it happened
    with pytest.raises(EngineError, match="AttributeError"):
        engines.call("no such method")
    assert len(engines.load(folder, "fp32", "cpu").labels) == 2  # and it goes on


def test_an_explanation_is_given_up_between_its_batches(engines, folder):
    class Enough(Exception):
        pass

    def go_on() -> None:
        asked.append(time.monotonic())
        if len(asked) == 2:
            raise Enough

    engine, asked = engines.load(folder, "auto", "cpu"), []
    located, number = engine.locate("good " * 80), engine._number
    gc.disable()
    try:
        with pytest.raises(Enough):
            engine.explain(located, 1, 64, go_on)
        assert len(asked) == 2
        assert engine.explain(located, 1, 4, lambda: None).words  # the channel is not out of step
        del engine
        assert is_forgotten(engines, number)  # no traceback holds it
    finally:
        gc.enable()


def test_after_an_interruption_no_answer_is_taken_for_another(engines, folder):
    def go_on() -> None:
        raise KeyboardInterrupt

    engine = engines.load(folder, "auto", "cpu")
    rows = list(engine.tokenize(TEXTS).tokens)
    expected = engine.forward(rows)
    with pytest.raises(KeyboardInterrupt):
        engine.explain(engine.locate("good"), 1, 4, go_on)
    assert np.array_equal(engine.forward(rows), expected)


def test_an_engine_that_nobody_holds_leaves_the_memory_there(engines, folder):
    engine = engines.load(folder, "auto", "cpu")
    number = engine._number
    engines.call("warm_up", number)
    gc.disable()
    try:
        del engine
        assert is_forgotten(engines, number)
    finally:
        gc.enable()


def test_a_killed_process_is_told_of(folder):
    told = threading.Event()
    process = EngineProcess(told.set)
    engine = process.load(folder, "auto", "cpu")
    assert not process.ended
    os.kill(process.pid, signal.SIGKILL)
    assert told.wait(timeout=20)
    assert process.ended
    with pytest.raises(EngineGone) as gone:
        engine.warm_up()
    assert gone.value.ended
    del engine  # there is nobody to tell
    process.close()


def test_a_channel_that_breaks_is_no_end_and_the_next_call_has_another(own, folder):
    engine = own.load(folder, "auto", "cpu")
    own._own.channel.close()
    with pytest.raises(EngineGone, match="closed a channel") as gone:
        engine.warm_up()
    assert not gone.value.ended
    engine.warm_up()


def test_closing_is_no_failure(own, folder):
    told: list[bool] = []
    own._on_end = lambda: told.append(True)
    own.load(folder, "auto", "cpu")
    own.close()
    assert own.ended
    with pytest.raises(EngineGone):
        own.call("warm_up", 1)
    for thread in threading.enumerate():
        if thread.name == "engine-process" and thread._target == own._watch:  # type: ignore[attr-defined]
            thread.join(timeout=20)
    assert told == []


def test_it_ends_with_the_process_that_started_it_however_that_ends(folder):
    script = "import sys, time; from serve_app.engine_process import EngineProcess\n"
    script += f"engine = (process := EngineProcess()).load({str(folder)!r}, 'auto', 'cpu')\n"
    script += "while True: engine.warm_up(); print(process.pid, 'torch' in sys.modules, flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        child, loaded_torch = parent.stdout.readline().split()
        assert loaded_torch == "False"  # hundreds of megabytes, which are the child's
        for number in (signal.SIGINT, signal.SIGTERM):  # to the whole group: for the parent to deal with
            os.kill(int(child), number)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline().split() == [child, "False"]  # it computes
        parent.kill()
    until(lambda: not psutil.pid_exists(int(child)))


def test_a_thread_computes_with_as_many_threads_as_it_was_given():
    seen = []

    def look(threads: int) -> None:
        use_threads(threads)
        seen.append(torch.get_num_threads())

    for threads in (1, 3):
        thread = threading.Thread(target=look, args=(threads,))
        thread.start()
        thread.join()
    assert seen == [1, 3]
