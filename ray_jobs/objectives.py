"""More than one objective: the trials that no other beats in everything, and which of them goes to the gate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from configs.search import Objective, SearchConfig
from ray_jobs.trial import OBJECTIVE

if TYPE_CHECKING:
    from torch import nn

    from ray_jobs.training import LabelledTokens, Trainer

# What a worker reports for an objective, and which way is better.
GOALS: Final[Mapping[Objective, tuple[str, str]]] = {
    "f1 max": (OBJECTIVE, "max"),
    "parameters min": ("parameters", "min"),
    "latency min": ("latency_ms", "min"),
}
_LATENCY_TEXTS = 8
_LATENCY_CALLS = 20


class Rated(Protocol):
    """A trial as far as it matters here. ``metrics``: the numbers of its last epoch."""

    trial_id: str

    @property
    def f1(self) -> float | None:
        """Best validation F1."""

    @property
    def outcome(self) -> str:
        """How it ended."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What it reported last."""


Trial = TypeVar("Trial", bound=Rated)


def values(trial: Rated, search: SearchConfig) -> tuple[float, ...] | None:
    """What the trial reached in each objective; None for one that failed or did not get far enough to be measured."""
    found = [trial.f1, *(trial.metrics.get(GOALS[objective][0]) for objective in search.objectives[1:])]
    if trial.outcome == "failed" or any(value is None for value in found):
        return None
    return tuple(value for value in found if value is not None)


def front(trials: Sequence[Trial], search: SearchConfig) -> list[Trial]:
    """The Pareto front, in the order given: trials that no other equals in every objective and beats in one."""
    # Larger is better in all of these; all but the first objective are to be small.
    rated = [(trial, (found[0], *(-value for value in found[1:])))
             for trial in trials if (found := values(trial, search)) is not None]  # fmt: skip

    def beaten(one: tuple[float, ...]) -> bool:
        return any(other != one and all(b >= a for a, b in zip(one, other, strict=True)) for _, other in rated)

    return [trial for trial, found in rated if not beaten(found)]


def choose(trials: Sequence[Trial], search: SearchConfig) -> tuple[Trial, str] | None:
    """The point of the front for the gate, and why; None with one objective or when no trial has them all."""
    points = [(trial, found) for trial in front(trials, search) if (found := values(trial, search)) is not None]
    if len(search.objectives) == 1 or not points:
        return None
    highest = max(found[0] for _, found in points)
    near = [(trial, found) for trial, found in points if found[0] >= highest - search.max_f1_drop - 1e-9]
    trial, found = min(near, key=lambda point: (*point[1][1:], -point[1][0]))
    if not search.max_f1_drop:
        return trial, f"the highest F1, {found[0]:.4f}"
    what = GOALS[search.objectives[1]][0]
    return trial, (
        f"{what} {shown(what, found[1])} is the least within {search.max_f1_drop:g} of the highest F1: "
        f"{found[0]:.4f} of {highest:.4f}"
    )


def gate_first(trials: Sequence[Trial], search: SearchConfig) -> list[Trial]:
    """``trials`` with the one that goes to the gate moved to the front."""
    chosen = choose(trials, search)
    if chosen is None:
        return list(trials)
    return [chosen[0], *(trial for trial in trials if trial is not chosen[0])]


def table(trials: Sequence[Trial], search: SearchConfig) -> str | None:
    """The Pareto front for people, with the point that goes to the gate and why; None with one objective."""
    chosen = choose(trials, search)
    if chosen is None:
        return None
    winner, why = chosen
    points = sorted(front(trials, search), key=lambda trial: -(trial.f1 or 0.0))
    names = [GOALS[objective][0] for objective in search.objectives[1:]]
    rows = [["", "trial", "best F1", *names]]
    for trial in points:
        costs = [shown(name, trial.metrics[name]) for name in names]
        rows.append(["->" if trial is winner else "", trial.trial_id, f"{trial.f1:.4f}", *costs])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    head = f"Pareto front ({', '.join(search.objectives)}): {len(points)} of {len(trials)} trials"
    return "\n".join([head, *lines, f"to the gate: trial {winner.trial_id}: {why}"])


def shown(name: str, value: float) -> str:
    """The ``value`` of an objective's metric ``name`` for people."""
    return f"{value:,.{2 if name == 'latency_ms' else 0}f}"


def model_cost(
    model: nn.Module, trainer: Trainer, texts: LabelledTokens, objectives: Sequence[Objective]
) -> dict[str, float]:
    """What a worker reports of its model beside F1: ``parameters``, and ``latency_ms`` if that is an objective.

    Latency: median over 20 forward passes of the first 8 validation texts, in fp32, on the trial's own device and
    threads. It does not depend on the weights, so it is measured once, before training.
    """
    cost: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    if "latency min" in objectives:
        batch = texts.tokens.select(range(min(_LATENCY_TEXTS, len(texts))))
        seconds = []
        for _ in range(_LATENCY_CALLS):
            started = time.perf_counter()
            trainer.logits(batch)  # ends with the copy to the processor, so a GPU has finished too
            seconds.append(time.perf_counter() - started)
        cost["latency_ms"] = 1000 * sorted(seconds)[_LATENCY_CALLS // 2]
    return cost
