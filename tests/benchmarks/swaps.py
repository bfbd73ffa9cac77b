"""Moves of the alias between two good versions under load: failed requests, latency, memory, threads and disk.

    python -m tests.benchmarks.swaps --moves 200

Two replicas on Ray Serve in HAProxy mode, on a registry of their own. The models answer by a rule, so a wrong label
counts as a failed request, as does an answer that names several versions. Clients send from this process without pause,
half of them single texts and half batches of eight. A move is over when every replica serves the version; the next one
follows at once. Figures of "before" are taken after four moves, when memory has settled. The table goes to standard
output, progress to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from configs.schema import Settings
from tests.integration.serving.swaps import Moved, move
from tests.integration.serving.world import NAME, Hammer, Registry, Service, free_port, wait_until

_START_S = 180.0
_POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 1 if a request failed."""
    options = _options(arguments)

    def progress(number: int, hammer: Hammer) -> None:
        if number % max(1, options.moves // 20) == 0:
            print(f"{number} of {options.moves} moves, {len(hammer.answers)} answers, {len(hammer.failures)} failed",
                  file=sys.stderr)  # fmt: skip

    with (
        tempfile.TemporaryDirectory(prefix="tg-swaps-") as home,
        contextlib.redirect_stdout(sys.stderr),
        running(Path(home), options.replicas, options.width) as service,
    ):
        versions = [service.first_version, service.registry.register(width=options.width)]
        moved = move(service, versions, options.moves, replicas=options.replicas, clients=options.clients,
                     progress=progress)  # fmt: skip
    for failure in moved.hammer.failures[:20]:
        print(failure, file=sys.stderr)
    print(table(moved))
    return 1 if moved.hammer.failures else 0


@contextlib.contextmanager
def running(home: Path, replicas: int, width: int, cpus_per_replica: float = 1) -> Iterator[Service]:
    """A service whose first version is ready in all replicas."""
    from ray import serve

    from ray_jobs.cluster import connected
    from serve_app.app import APP_NAME, application

    registry, port = Registry(f"sqlite:///{home}/mlflow.db", home), free_port()
    settings = Settings.model_validate(
        {
            "home": str(home),
            "tracking": {"uri": registry.uri, "model_name": NAME},
            "serving": {
                "min_replicas": replicas,
                "max_replicas": replicas,
                "cpus_per_replica": cpus_per_replica,
                "poll_interval_s": _POLL_S,
                "cache_dir": str(home / "cache"),
            },
        }
    )
    first = registry.register(width=width)
    registry.promote(first)
    with connected(str(home)):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
        serve.run(application(settings), name=APP_NAME, route_prefix="/")
        service = Service(f"http://127.0.0.1:{port}", settings, registry, first)
        wait_until(lambda: service.client.get("/ready").status_code == 200, _START_S)
        service.wait_for_version(first, replicas, _START_S)
        yield service
        serve.shutdown()


def table(moved: Moved) -> str:
    """Markdown."""
    hammer, before, after = moved.hammer, moved.before, moved.after
    p50, p99 = (float(np.percentile(hammer.seconds, at)) * 1000 for at in (50, 99))
    rows = [
        ("moves of the alias", "", f"{len(moved.seconds)}"),
        ("a move, median and longest, s", "", f"{np.median(moved.seconds):.1f}, {max(moved.seconds):.1f}"),
        ("requests", "", f"{len(hammer.answers) + len(hammer.failures)}"),
        ("failed", "", f"{len(hammer.failures)}"),
        ("versions in answers", "", ", ".join(sorted({version for _, version in hammer.answers}))),
        ("latency, p50 and p99, ms", "", f"{p50:.0f}, {p99:.0f}"),
        ("memory of the replicas, RSS, MB", f"{before.rss_mb:.0f}", f"{after.rss_mb:.0f}"),
        ("of that their own, USS, MB", f"{before.own_mb:.0f}", f"{after.own_mb:.0f}"),
        ("threads of the replicas", f"{before.threads}", f"{after.threads}"),
        ("versions in the cache", f"{len(before.copies)}", f"{len(after.copies)}"),
        ("cache on disk, MB", f"{before.disk_mb:.1f}", f"{after.disk_mb:.1f}"),
    ]
    return "\n".join(["| | before | after |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.swaps", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--moves", type=int, default=200, help="count (default %(default)s)")
    parser.add_argument("--replicas", type=int, default=2, help="count (default %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="requests at a time (default %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="of the model, units; 512: 10 MB of weights, so that "
                        "those of a model that stays in memory show (default %(default)s)")  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
