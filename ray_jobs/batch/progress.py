"""How far a batch job is, in lines that read well in a terminal and in a job's log."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_jobs.batch.inputs import RowCount
from ray_jobs.batch.worker import Outcome
from ray_jobs.command import say

_EVERY_SECONDS = 10.0


class Progress:
    """Counts outcomes. ``expected``: rows of the whole input; ``before``: those that an earlier start finished."""

    def __init__(self, expected: RowCount, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._before, self._clock = expected, before, clock
        self._started = self._told = clock()
        self.rows = self.rejected = self.tokens = 0
        self.cpu_seconds = 0.0
        self.precision = ""

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._started

    @property
    def rows_per_second(self) -> float:
        """Of this start, its workers' start included."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    def add(self, outcome: Outcome) -> None:
        """Counts a finished part, and says a line for the first one and every ten seconds."""
        first = not self.rows
        self.rows, self.rejected = self.rows + outcome.rows, self.rejected + outcome.rejected
        self.tokens, self.cpu_seconds = self.tokens + outcome.tokens, self.cpu_seconds + outcome.cpu_seconds
        self.precision = outcome.precision
        if first:
            say(f"first part scored after {self.seconds:.0f} s, in {outcome.precision}")
        elif self._clock() - self._told >= _EVERY_SECONDS:
            say(self.line())
        else:
            return
        self._told = self._clock()

    def line(self) -> str:
        """Rows done of all, the rate, and what is left."""
        done, all_rows = self._before + self.rows, max(self._expected.rows, self._before + self.rows)
        about = "" if self._expected.exact else "about "
        left = (all_rows - done) / self.rows_per_second if self.rows_per_second else 0.0
        return (
            f"{done:,} of {about}{all_rows:,} rows ({100 * done / max(1, all_rows):.0f} %), "
            f"{self.rows_per_second:,.1f} rows/s, {self.rejected:,} rejected, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
