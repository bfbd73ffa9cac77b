"""Commands as processes of their own, in a home of their own, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil


class Command:
    """A running ``python -m MODULE``: its output is collected, its descendants are remembered.

    ``through``: a command that becomes the one that it is given.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self._lines: list[str] = []
        self._seen: dict[int, psutil.Process] = {}
        self._peak = 0
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": "/tmp"}
        variables.pop("RAY_ADDRESS", None)
        variables |= environment or {}
        self.process = subprocess.Popen(
            [*through, sys.executable, "-m", module, *arguments],
            cwd=cwd,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # As from a terminal: a test session that runs in the background ignores Ctrl-C, and children inherit that.
            preexec_fn=_listen_to_ctrl_c,
        )
        self._root = psutil.Process(self.process.pid)
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    @property
    def peak_bytes(self) -> int:
        """The largest sum of PSS over the process and its descendants that was seen."""
        return self._peak

    def wait_for(self, text: str, timeout_s: float) -> None:
        """Waits until the output has ``text``."""
        self.until(lambda: text in self.output, timeout_s, f"'{text}'")

    def wait_for_after(self, start: int, text: str, timeout_s: float) -> None:
        """Waits until the output has ``text`` behind its character ``start``."""
        self.until(lambda: text in self.output[start:], timeout_s, f"'{text}'")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command alone."""
        self.process.send_signal(number)

    def finished(self, timeout_s: float) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not finished after {timeout_s} s:\n{self.output}") from None

    def left_behind(self, timeout_s: float) -> list[str]:
        """Command lines of descendants that still live ``timeout_s`` seconds from now; they are killed then."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=timeout_s)
        shown = []
        for process in alive:
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    shown.append(" ".join(process.cmdline())[:200])
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return shown

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def _watch(self) -> None:
        while self.process.poll() is None:
            for look in range(8):  # who is there: often; how much memory they take is costly to ask
                for process in self._family():
                    self._seen.setdefault(process.pid, process)
                if look == 0:
                    self._peak = max(self._peak, sum(_pss(process) for process in self._family()))
                threading.Event().wait(0.4)

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Waits until ``condition`` holds, which it must before the command ends; ``what`` names it in the failure."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.process.poll()
            if condition():
                return
            assert ended is None, f"ended with {ended} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s:\n{self.output}"
            threading.Event().wait(0.1)


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _pss(process: psutil.Process) -> int:
    """Proportional set size, bytes; 0 for a process that has just ended."""
    try:
        pss: int = process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return pss
