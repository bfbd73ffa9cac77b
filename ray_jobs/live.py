"""The live table of a search on a terminal: one, redrawn in place, gone when the search ends."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_jobs.history import short, short_names

if TYPE_CHECKING:
    from ray_jobs.tracking import TrialRecord

_OTHER_LINES = 6  # of the terminal: the table's frame, the line above it, the prompt
_FIXED_COLUMNS = 40  # characters: trial, outcome, epoch, F1 and the gaps between them
_VALUE = 9  # characters: the longest number
_STYLES = {
    "running": "cyan",
    "finished": "green",
    "stopped_early": "bright_black",
    "failed": "red",
    "killed": "magenta",
}


class LiveTable:
    """What rich draws. ``trials``: all so far; ``headline``: the line above them; ``epochs``: of a whole trial."""

    def __init__(self, trials: Callable[[], Sequence[TrialRecord]], headline: Callable[[], str], epochs: int) -> None:
        self._trials, self._headline, self._epochs = trials, headline, epochs

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draws it on standard error while inside; what is printed meanwhile scrolls by above it."""
        plain = sys.stderr
        logs = [log for log in logging.getLogger().handlers if getattr(log, "stream", None) is plain]
        console = Console(stderr=True)
        with Live(self, console=console, refresh_per_second=2, transient=True, redirect_stdout=False):
            _direct(logs, sys.stderr)  # which is Live's now; log lines would be drawn over otherwise
            try:
                yield
            finally:
                _direct(logs, plain)

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Group]:
        """The table as it is now: running trials first, then by F1, as many as the terminal has lines for."""
        trials = sorted(self._trials(), key=lambda trial: (trial.outcome != "running", -(trial.f1 or -1.0)))
        room = max(3, console.height - _OTHER_LINES)
        names = short_names({key for trial in trials for key in trial.parameters})
        shown = _fitting(names, console.width - _FIXED_COLUMNS)
        table = Table("trial", "", "epoch", "F1", *(names[key] for key in shown), box=None, pad_edge=False)
        table.header_style = "dim"
        best = max((trial.f1 or -1.0 for trial in trials if trial.outcome != "failed"), default=-1.0)
        for trial in trials[:room]:
            table.add_row(
                trial.trial_id,
                Text(trial.outcome.replace("_", " "), _STYLES[trial.outcome]),
                f"{trial.epochs}/{self._epochs}",
                Text("-" if trial.f1 is None else f"{trial.f1:.4f}", "bold yellow" if trial.f1 == best else ""),
                *(short(trial.parameters.get(key, "")) for key in shown),
            )
        hidden = [Text(f"and {len(trials) - room} more", "dim")] if len(trials) > room else []
        yield Group(Text(self._headline(), "bold"), table, *hidden)


def _fitting(names: dict[str, str], width: int) -> list[str]:
    """The first parameters whose columns have room in ``width`` characters: wrapped rows would not fit the screen."""
    ends = itertools.accumulate(max(len(name), _VALUE) + 2 for name in names.values())
    return [key for key, end in zip(names, ends, strict=True) if end <= width]


def _direct(logs: Sequence[logging.Handler], stream: Any) -> None:
    for log in logs:
        if isinstance(log, logging.StreamHandler):
            log.setStream(stream)
