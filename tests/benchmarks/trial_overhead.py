"""What a trial costs beside its training: from its start to its first step, from its last report to the next start.

    python -m tests.benchmarks.trial_overhead [--trials 6] [--concurrent 2] [--set key=value ...]

It runs a search of one-epoch trials on built-in data and reads its journal. Medians, seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from configs.loading import load_settings
from ray_jobs.journal import Journal
from ray_jobs.search import run_search


def overheads(events: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of every trial: ``start`` to the first step, ``end`` from its last report to its end, and ``idle``, how
    long its place was empty before the next trial started."""
    started = {event["trial"]: event["time"] for event in events if event["event"] == "started"}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for event in events:
        if event["event"] == "epoch":
            first.setdefault(event["trial"], event["time"] - event["metrics"]["seconds"])
            last[event["trial"]] = event["time"]
    ended = {event["trial"]: event["time"] for event in events if event["event"] == "ended"}
    starts = sorted(started.values())
    concurrent = sum(start < min(ended.values()) for start in starts)
    return {
        "start": [first[trial] - time for trial, time in started.items() if trial in first],
        "end": [ended[trial] - last[trial] for trial in last],
        # The n-th trial to end makes room for the trial that starts n-th after the first ones.
        "idle": [start - end for end, start in zip(sorted(ended.values()), starts[concurrent:], strict=False)],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-overhead-") as home:
        sets = [f"home={home}", f"search.trials={args.trials}", f"search.max_concurrent={args.concurrent}"]
        sets += ["training.epochs=1", "search.scheduler=none", "data.generator={texts: 1000, test_texts: 100}"]
        settings = load_settings("quickstart.yaml", [*sets, *args.overrides])
        result = run_search(settings)
        found = overheads(Journal(str(Path(f"{settings.search.storage}/{result.name}/journal.jsonl"))).events)
    for name, what in {
        "start": "start to first step",
        "end": "last report to end",
        "idle": "end to the next start",
    }.items():
        values = found[name]
        print(f"{what:22} {statistics.median(values):5.1f} s  ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
