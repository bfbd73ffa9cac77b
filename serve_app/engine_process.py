"""Engines in a process of their own, beside the one that answers HTTP.

A forward pass is a hundred calls of PyTorch, and each of them takes Python's lock back when it is done. In one process
with an event loop that is busy, passes and requests wait for that lock all the time: under four times the load that it
can bear, a replica answered less than half of what it answers so (docs/serving.md). So the replica's process keeps
tokenisers and sends token ids; models, and PyTorch with all its memory, are in a child, ``engine_worker``.

Every thread that computes here has a channel of its own to a thread of the child, which blocks on it, so a pass costs
one message each way. The child ends with the replica, however that ends: it sees the end of its control socket.
Pickle goes over these sockets, which nobody but the two processes has.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from configs.exit_codes import UsageError
from serve_app.inference.attributions import Attributions
from serve_app.inference.folder import ModelFolderError
from serve_app.inference.tokenizing import LocatedTokens, TextTokenizer, Tokenized, locate, read_tokenizer, tokenize

GO_ON = "go on?"  # the child asks this between the batches of an explanation
# Errors that mean something here come over as the first of these that they are, with their message; anything else is an
# EngineError that names it.
KNOWN_ERRORS = (ModelFolderError, UsageError, FileNotFoundError, OSError, MemoryError, ArithmeticError)
_END_S = 5.0
_DIES_S = 0.5  # from the end of its channels to its own


class EngineError(RuntimeError):
    """Something failed in the engine's process; a note has the traceback there."""


class EngineGone(ConnectionError):
    """The engine's process does not answer: it has ``ended``, or closed this one channel."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__(f"the engine's process {'has ended' if ended else 'closed a channel, see its log'}")
        self.ended = ended


@dataclass(frozen=True)
class EngineFacts:
    """What the replica knows of an engine; see ``Engine``. ``number``: its name in the child."""

    number: int
    labels: tuple[str, ...]
    max_length: int
    precision: str
    precision_reason: str
    device_type: str
    weights_digest: str


class EngineProcess:
    """The child. Safe to use from several threads at once. ``on_end`` is called, on a thread of its own, when the child
    ends though nobody closed it."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve_app.engine_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._own = threading.local()
        self._closing = False
        self._on_end = on_end
        threading.Thread(target=self._watch, name="engine-process", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether the child has ended."""
        return self._child.poll() is not None

    def prepare(self, threads: int, nice: int | None = None) -> None:
        """The calling thread is going to compute on a thread of the child that has so many intra-op threads and, if it
        is said, that priority. Without this it has one, and the child's priority."""
        self._own.wanted, self._own.channel = {"threads": threads, "nice": nice}, None

    def load(self, folder: Path, precision: str, device: str) -> RemoteEngine:
        """``Engine.load`` in the child, with its errors."""
        facts = EngineFacts(*self.call("load", str(folder), precision, device))
        try:
            return RemoteEngine(self, facts, read_tokenizer(folder))
        except BaseException:
            self.forget(facts.number)
            raise

    def call(self, name: str, *arguments: Any, go_on: Callable[[], None] = lambda: None) -> Any:
        """What the child's method gives. Where it asks whether to go on, ``go_on`` is called, and what that raises is
        raised here once the child has given up. Raises EngineGone, EngineError, and KNOWN_ERRORS of the child."""
        stopped: Exception | None = None
        channel = self._channel()
        try:
            channel.send((name, arguments))
            while (reply := channel.recv()) == GO_ON:
                try:
                    go_on()
                except Exception as error:  # noqa: BLE001 - the caller's own, raised below
                    stopped = error
                channel.send(stopped is None)
        except BaseException as error:
            self._own.channel = None  # with an answer on its way, it would be taken for that to the next question
            channel.close()
            if isinstance(error, EOFError | OSError):
                raise self._gone() from error
            raise
        if stopped is not None:
            try:
                raise stopped
            finally:
                del stopped  # its traceback holds this frame, and with it the engine, until Python looks for circles
        value, kind, message, trace = reply
        if kind is None:
            return value
        known = {error.__name__: error for error in KNOWN_ERRORS}.get(kind)
        failure = EngineError(f"{kind}: {message}") if known is None else known(message)
        failure.add_note(trace)
        raise failure

    def forget(self, number: int) -> None:
        """Lets the child drop an engine. Takes no lock: it is called when Python drops a RemoteEngine, at any time."""
        try:
            self._control.send(json.dumps({"forget": number}).encode())
        except OSError:  # the child has ended, and all engines with it
            return

    def close(self) -> None:
        """Ends the child; what it computes is not waited for."""
        self._closing = True
        self._control.close()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _channel(self) -> Connection[Any, Any]:
        """The calling thread's."""
        if not hasattr(self._own, "channel"):
            self.prepare(1)
        if self._own.channel is None:
            ours, theirs = socket.socketpair()
            self._own.channel = Connection(ours.detach())
            order = json.dumps({"serve": self._own.wanted}).encode()
            with theirs:
                try:
                    socket.send_fds(self._control, [order], [theirs.fileno()])
                except OSError as error:
                    self._own.channel = None
                    raise self._gone() from error
        channel: Connection[Any, Any] = self._own.channel
        return channel

    def _gone(self) -> EngineGone:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_DIES_S)
        return EngineGone(ended=self.ended)

    def _watch(self) -> None:
        self._child.wait()
        if not self._closing:
            self._on_end()


class RemoteEngine:
    """An ``Engine`` of the child's: the same attributes and methods, but those that need PyTorch compute there."""

    def __init__(self, process: EngineProcess, facts: EngineFacts, tokenizer: TextTokenizer) -> None:
        self._process, self._number, self._tokenizer = process, facts.number, tokenizer
        self.labels, self.max_length = facts.labels, facts.max_length
        self.precision, self.precision_reason = facts.precision, facts.precision_reason
        self.device_type, self.weights_digest = facts.device_type, facts.weights_digest
        weakref.finalize(self, process.forget, facts.number).atexit = False

    def tokenize(self, texts: Sequence[str], truncate: bool = True) -> Tokenized:
        """See ``Engine.tokenize``."""
        return tokenize(self._tokenizer, texts, self.max_length, truncate)

    def locate(self, text: str) -> LocatedTokens:
        """See ``Engine.locate``."""
        return locate(self._tokenizer, text, self.max_length)

    def forward(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """See ``Engine.forward``."""
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        found: np.ndarray = self._process.call("forward", self._number, np.concatenate(ids), lengths)
        return found

    def warm_up(self) -> None:
        """See ``Engine.warm_up``: on the thread of the child that the calling one has."""
        self._process.call("warm_up", self._number)

    def explain(self, tokens: LocatedTokens, label: int, steps: int, go_on: Callable[[], None]) -> Attributions:
        """See ``Explainer.explain``."""
        found: Attributions = self._process.call("explain", self._number, tokens, label, steps, go_on=go_on)
        return found
