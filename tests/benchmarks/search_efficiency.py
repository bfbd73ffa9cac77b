"""Search efficiency: the epochs that the default sampler and scheduler need for what random search reaches.

    python -m tests.benchmarks.search_efficiency [--set search.sampler=gp ...] [--concurrent N] [--seeds N]

Replayed on the table of ``search_table.py``, without training: Tune's own scheduler and Optuna searcher, as
``ray_jobs.tuning`` makes them, propose trials and are told the table's F1 of the nearest point of the grid. Epochs take
equally long but for a tenth of noise, so that trials beside each other do not report in lockstep.

Two ways. A point trained once is not trained again: the nearest other one is, as training close by gives another result
in truth. Or it may be, and gives the same result to the last digit each time, which hurts a sampler that concentrates.

Target: the median over the seeds of the best F1 of 40 random trials, each trained to its end.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import math
import random
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from configs.loading import load_settings
from configs.search import SearchConfig
from ray_jobs.trial import OBJECTIVE
from ray_jobs.tuning import new_scheduler, new_searcher
from tests.benchmarks.search_table import EPOCHS, GRID, Point, read_table

RANDOM_TRIALS = 40
LOGARITHMIC = {"training.learning_rate"}
SPACE: dict[str, dict[str, Any]] = {
    key: {"type": "choice", "values": values}
    if key == "training.batch_size"
    else {"type": "loguniform" if key in LOGARITHMIC else "uniform", "low": values[0], "high": values[-1]}
    for key, values in GRID.items()
}


@dataclass(frozen=True)
class FakeTrial:
    """What a scheduler looks at in a trial of Tune."""

    trial_id: str


@dataclass(frozen=True)
class Controller:
    """What a scheduler looks at in Tune's controller."""

    def get_live_trials(self) -> list[FakeTrial]:
        """None that could be waited for."""
        return []


@functools.cache
def scaled(point: Point) -> tuple[float, ...]:
    """The point with every dimension from 0 to 1."""
    places = []
    for (key, values), value in zip(GRID.items(), point, strict=True):
        low, high = values[0], values[-1]
        if key in LOGARITHMIC:
            low, high, value = math.log(low), math.log(high), math.log(value)
        places.append((value - low) / (high - low))
    return tuple(places)


def nearest(parameters: dict[str, Any], points: Iterable[Point]) -> Point:
    """The point that is closest."""
    here = scaled(tuple(parameters[key] for key in GRID))
    return min(points, key=lambda point: math.dist(here, scaled(point)))


def replay(
    search: SearchConfig, table: dict[Point, list[float]], concurrent: int, again: bool = True
) -> Iterator[float]:
    """The F1 of every epoch of the search in the order of time, until ``search.trials`` have ended.

    ``again``: whether two trials may get the same point.
    """
    searcher, scheduler = new_searcher(search), new_scheduler(search, EPOCHS)
    clock, names = random.Random(search.seed), itertools.count()
    controller: Any = Controller()
    left = list(table)
    running: list[tuple[float, int, list[float], int]] = []  # time of the report, trial, its curve, its epoch

    def start(now: float) -> None:
        number = next(names)
        if number >= search.trials or not left:
            return
        parameters = searcher.suggest(str(number))
        assert parameters is not None
        if scheduler is not None:
            scheduler.on_trial_add(controller, FakeTrial(str(number)))  # type: ignore[arg-type]
        point = nearest(parameters, left)
        if not again:
            left.remove(point)
        heapq.heappush(running, (now + clock.uniform(0.9, 1.1), number, table[point], 1))

    for _ in range(concurrent):
        start(0.0)
    while running:
        now, number, curve, epoch = heapq.heappop(running)
        trial: Any = FakeTrial(str(number))
        result = {"epoch": epoch, "training_iteration": epoch, OBJECTIVE: max(curve[:epoch])}
        decision = "CONTINUE" if scheduler is None else scheduler.on_trial_result(controller, trial, result)
        searcher.on_trial_result(str(number), result)
        yield curve[epoch - 1]
        if epoch < EPOCHS and decision == "CONTINUE":
            heapq.heappush(running, (now + clock.uniform(0.9, 1.1), number, curve, epoch + 1))
            continue
        if scheduler is not None:
            scheduler.on_trial_complete(controller, trial, result)
        searcher.on_trial_complete(str(number), result)
        start(now)


def epochs_until(target: float, f1s: Iterator[float]) -> float:
    """Epochs until the first F1 that is at least ``target``; infinite if there is none."""
    return next((count for count, f1 in enumerate(f1s, start=1) if f1 >= target), math.inf)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; also where some values are infinite."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] for share in (0.25, 0.5, 0.75)]
    return at[0], at[1], at[2]


def main() -> None:
    """Replays and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="search.KEY=VALUE to try")
    parser.add_argument("--concurrent", type=int, default=2, help="trials at a time (the quickstart's: 2)")
    parser.add_argument("--seeds", type=int, default=50)
    args = parser.parse_args()
    table, full = read_table(), RANDOM_TRIALS * EPOCHS
    base = {"training": {"epochs": EPOCHS}, "search": {"space": SPACE}}
    ours = load_settings(None, args.overrides, base=base).search.model_copy(update={"trials": full})
    plain = SearchConfig.model_validate({"space": SPACE, "sampler": "random", "scheduler": "none", "trials": full})

    best = sorted((max(curve) for curve in table.values()), reverse=True)
    print(f"{len(table)} configurations, {args.seeds} seeds, {args.concurrent} trials at a time")
    header = f"{'epochs until the target':24} {'quarter':>8} {'median':>7} {'three quarters':>15} {'never':>6}"
    print(f"{header} {f'of {full}':>7}")

    def searches(search: SearchConfig, again: bool) -> list[Iterator[float]]:
        seeded = [search.model_copy(update={"seed": seed}) for seed in range(args.seeds)]
        return [itertools.islice(replay(one, table, args.concurrent, again), 3 * full) for one in seeded]

    for again in (False, True):
        random_f1s = [list(f1s) for f1s in searches(plain, again)]
        target = statistics.median(max(f1s[:full]) for f1s in random_f1s)
        reached = sum(f1 >= target for f1 in best)
        how = "a point may be trained again" if again else "every point is trained at most once"
        print(f"{how}: target F1 {target:.4f}, reached by {reached} points, the best has {best[0]:.4f}")
        ours_name = f"{ours.sampler}, {ours.scheduler}"
        for name, found in (("random, full trials", map(iter, random_f1s)), (ours_name, searches(ours, again))):
            needed = [epochs_until(target, f1s) for f1s in found]
            low, middle, high = quartiles(needed)
            never = sum(map(math.isinf, needed))
            print(f"  {name:22} {low:8.0f} {middle:7.0f} {high:15.0f} {never:6} {middle / full:7.2f}", flush=True)


if __name__ == "__main__":
    main()
