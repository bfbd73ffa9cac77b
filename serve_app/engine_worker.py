"""The child of ``EngineProcess``: loads engines and computes with them for the process that started it.

python -m serve_app.engine_worker FILE_DESCRIPTOR_OF_THE_CONTROL_SOCKET
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app.engine_process import GO_ON, KNOWN_ERRORS
from serve_app.inference.attributions import Attributions
from serve_app.inference.tokenizing import LocatedTokens

if TYPE_CHECKING:  # what brings torch takes seconds, and ``main`` has something to do before
    from serve_app.inference.engine import Engine

_LONGEST_ORDER = 4096
logger = logging.getLogger(__name__)


class _GivenUp(Exception):
    """Whoever asked for this does not wait for it any more."""


class Worker:
    """The engines of one replica, by number, and a thread for each channel that is opened."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._numbers = itertools.count(1)

    def run(self, control: socket.socket) -> None:
        """Takes orders until the other side is gone."""
        while True:
            order, descriptors, _, _ = socket.recv_fds(control, _LONGEST_ORDER, 1)
            if not order:
                return
            wanted = json.loads(order)
            if "forget" in wanted:
                if self._engines.pop(wanted["forget"], None) is not None:
                    _give_memory_back()
            elif not descriptors:  # the other side sees its channel closed
                logger.error("this process has no file descriptor left for another channel")
            else:
                channel: Connection[Any, Any] = Connection(descriptors[0])
                threading.Thread(target=self._serve, args=(channel,), kwargs=wanted["serve"], daemon=True).start()

    def load(self, channel: Connection[Any, Any], folder: str, precision: str, device: str) -> tuple[Any, ...]:
        """The values of ``EngineFacts``."""
        from serve_app.inference.engine import Engine

        engine, number = Engine.load(folder, precision=precision, device=device), next(self._numbers)
        self._engines[number] = engine
        _give_memory_back()
        return (
            number, engine.labels, engine.max_length, engine.precision, engine.precision_reason, engine.device_type,
            engine.weights_digest,
        )  # fmt: skip

    def forward(self, channel: Connection[Any, Any], number: int, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """``Engine.forward`` of texts that are laid end to end in ``ids``."""
        return self._engines[number].forward(np.split(ids, np.cumsum(lengths)[:-1]))

    def warm_up(self, channel: Connection[Any, Any], number: int) -> None:
        """``Engine.warm_up``."""
        self._engines[number].warm_up()

    def explain(
        self, channel: Connection[Any, Any], number: int, tokens: LocatedTokens, label: int, steps: int
    ) -> Attributions:
        """``Explainer.explain``; asks before every batch whether somebody still waits for it."""

        def go_on() -> None:
            channel.send(GO_ON)
            if not channel.recv():
                raise _GivenUp

        try:
            return self._engines[number].explainer().explain(tokens, label, steps, go_on)
        finally:
            _give_memory_back()

    def _serve(self, channel: Connection[Any, Any], threads: int, nice: int | None) -> None:
        use_threads(threads)
        if nice is not None:
            with contextlib.suppress(AttributeError, OSError):  # on Linux alone a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        with channel, contextlib.suppress(EOFError, ConnectionError):  # the thread at the other end has ended
            while True:
                name, arguments = channel.recv()
                channel.send(self._reply(channel, name, arguments))

    def _reply(self, channel: Connection[Any, Any], name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The value, and the name, message and traceback of the error."""
        try:
            return getattr(self, name)(channel, *arguments), None, None, None
        except Exception as error:  # noqa: BLE001 - whoever asked decides what it means
            kind = next((kind for kind in KNOWN_ERRORS if isinstance(error, kind)), type(error))
            return None, kind.__name__, str(error), traceback.format_exc()


def use_threads(threads: int) -> None:
    """Gives the calling thread so many intra-op threads."""
    import torch

    torch.get_num_threads()  # a thread takes over the process's number the first time it is looked at, and only then
    torch.set_num_threads(threads)


def _give_memory_back() -> None:
    """Returns what is free, which glibc would keep: after a load of DistilBERT-base, read in fp32, 100 MB."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """The command."""
    for number in (signal.SIGINT, signal.SIGTERM):  # to a whole group: the process that started this one drains first
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    import serve_app.inference.engine  # noqa: F401 - now, while a model is still on its way

    Worker().run(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # in the middle of what is being computed: it is of use to nobody any more


if __name__ == "__main__":
    main()
