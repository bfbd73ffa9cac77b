"""What the gate's pages are made with: templates that escape every text, how numbers are written, small pictures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gate.statistics import Interval
from serve_app.inference.metrics import F1Definition

T = TypeVar("T")

_TEMPLATES: Final = Path(__file__).parent / "templates"
_MOST_ROWS: Final = 16  # of a table that is to be read, not searched
_ROWS_OF_MANY: Final = 10


def render(template: str, **values: Any) -> str:
    """The HTML document that a file of ``gate/templates`` makes of ``values``, all of which are escaped in it."""
    return _environment().get_template(template).render(values)


@dataclass(frozen=True)
class Scale:
    """The axis of a picture: ``low`` lies at its left end, ``high`` at its right one."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Scale:
        """An axis of round numbers, 0 to 1, that holds all ``values``, each 0 to 1."""
        found = [min(max(value, 0.0), 1.0) for value in values]
        step = _round_up(max(max(found) - min(found), 0.01) / 2)
        low, high = math.floor(min(found) / step) * step, math.ceil(max(found) / step) * step
        if low == high:  # one value, on a border
            low, high = low - step, high + step
        return cls(max(low, 0.0), min(high, 1.0))

    @classmethod
    def around_zero(cls, values: Iterable[float]) -> Scale:
        """An axis with zero in the middle that holds all ``values``."""
        half = _round_up(max((abs(value) for value in values), default=0.0))
        return cls(-half, half)

    @property
    def ends(self) -> tuple[str, str]:
        """What to write at its left and right end."""
        return f"{self.low:.4g}".replace("-", "−"), f"{self.high:.4g}"

    def at(self, value: float) -> str:
        """Where ``value`` lies, as a percentage of the picture's width; beyond an end, at that end."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def worst_first(rows: Sequence[T], badness: Callable[[T], float]) -> tuple[Sequence[T], Sequence[T]]:
    """All rows and none, or if they are many the few worst and all the others, worst first."""
    if len(rows) <= _MOST_ROWS:
        return rows, []
    ordered = sorted(rows, key=badness, reverse=True)
    return ordered[:_ROWS_OF_MANY], ordered[_ROWS_OF_MANY:]


def f1_name(key: str) -> str:
    """Which F1 a definition's ``key`` means, in words."""
    label = F1Definition.from_key(key).positive_label
    return "mean F1 of all classes (macro)" if label is None else f"F1 of class {label}"


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with as many ``digits`` after the point; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 4) -> str:
    """``value`` with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def between(found: Interval) -> str:
    """The ends of a difference's interval, with their signs."""
    return f"{signed(found.low)} to {signed(found.high)}"


def digits_to_tell(first: float | None, second: float | None) -> int:
    """As many digits as two numbers need that differ and must not be printed alike; at least 4."""
    digits = 4
    if first is not None and second is not None:
        while digits < 17 and first != second and f"{first:.{digits}f}" == f"{second:.{digits}f}":
            digits += 1
    return digits


def count(value: int) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,}"


def size(bytes_: int) -> str:
    """Bytes for people."""
    if bytes_ < 1_000_000:
        return f"{bytes_ / 1000:.1f} kB"
    return f"{bytes_ / 1_000_000:,.1f} MB"


def moment(iso: str | None) -> str:
    """A time in ISO 8601, UTC, to the second."""
    return f"{iso[:10]} {iso[11:19]} UTC" if iso else "not recorded"


def _round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    if value <= 0.0:
        return 0.01
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if value <= factor * power * 1.000001)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: list[Callable[..., str]] = [number, signed, between, count, size, moment, f1_name]
    environment.filters |= {each.__name__: each for each in filters}
    return environment
