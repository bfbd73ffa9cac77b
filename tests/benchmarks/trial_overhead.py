"""What a trial costs beside its training: from its start to its first step, from its last report to the next start.

    python -m tests.benchmarks.trial_overhead [--trials 6] [--concurrent 2] [--set key=value ...]

It runs a search of one-epoch trials on built-in data and reads its journal. Medians, seconds. Beside it: what each kind
of a trial's processes takes, the most that was seen of memory (PSS) and processor time, as means over its processes. On
a cluster the Tune functions are all on the head, and the workers where there is room.

With ``--cpus 16`` Ray is told that it has so many, so that more trials run at a time than there are cores.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

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


@dataclass
class Used:
    """The most that was seen of one process. ``kind``: the class of Ray's actor."""

    kind: str
    pss_mb: float = 0.0
    cpu_s: float = 0.0


class Watched:
    """Looks at the processes of actors below this one while it is entered."""

    def __init__(self) -> None:
        self._used: dict[psutil.Process, Used] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def kinds(self) -> dict[str, list[Used]]:
        """What was seen, by kind. Processes that Ray starts beforehand take their kind when they have work."""
        found: dict[str, list[Used]] = {}
        for used in self._used.values():
            found.setdefault(used.kind, []).append(used)
        return found

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    kind = re.split(r"[.(\s]", title.removeprefix("ray::"))[0]
                    if not title.startswith("ray::") or kind == "IDLE" or kind.endswith("Agent"):
                        continue
                    used = self._used.setdefault(process, Used(kind))
                    used.kind = kind
                    used.pss_mb = max(used.pss_mb, process.memory_full_info().pss / 1e6)
                    used.cpu_s = sum(process.cpu_times()[:2])
                except psutil.NoSuchProcess:
                    continue


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--cpus", type=int, help="what Ray takes this machine to have (default: what it has)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tg-overhead-") as home:
        sets = [f"home={home}", f"search.trials={args.trials}", f"search.max_concurrent={args.concurrent}"]
        sets += ["training.epochs=1", "search.scheduler=none", "data.generator={texts: 1000, test_texts: 100}"]
        settings = load_settings("quickstart.yaml", [*sets, *args.overrides])
        if args.cpus:
            ray.init(address="local", num_cpus=args.cpus, include_dashboard=False, log_to_driver=False)
        with Watched() as watched:
            result = run_search(settings)
        found = overheads(Journal(str(Path(f"{settings.search.storage}/{result.name}/journal.jsonl"))).events)
    for name, what in {
        "start": "start to first step",
        "end": "last report to end",
        "idle": "end to the next start",
    }.items():
        if not (values := found[name]):
            continue  # all trials ran at once
        print(f"{what:22} {statistics.median(values):5.1f} s  ({min(values):.1f} to {max(values):.1f})")
    for kind, used in watched.kinds().items():
        print(
            f"{kind:22} {len(used)} processes, {statistics.mean(one.pss_mb for one in used):5.0f} MB (PSS), "
            f"{statistics.mean(one.cpu_s for one in used):5.1f} s of the processor"
        )


if __name__ == "__main__":
    main()
