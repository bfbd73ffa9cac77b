"""What ``python -m tests.benchmarks.serving --overload SECONDS`` measures: the service at four times its capacity.

The capacity is what a closed loop of 32 clients reaches; then four times that comes in an open loop, and one request
right afterwards. Memory is that of all replicas, without what they share.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

Row = dict[str, Any]


def overloaded(url: str, server: psutil.Process, kind: str, load: Callable[..., Row], seconds: float) -> Row:
    """One kind of texts. ``load``: calls the load generator with further options."""
    peak = load("--concurrency=32")["requests_per_s"]
    before = _memory_mb(server)
    with _watched_memory(server) as memory:
        found = load(f"--rate={4 * peak:.1f}", f"--seconds={seconds}")
    status, milliseconds = _one_request(url)
    return {
        "kind": kind,
        "peak": peak,
        "offered": 4 * peak,
        "first_status": status,
        "first_ms": milliseconds,
        "before_mb": before,
        "highest_mb": max(memory),
        "after_mb": _memory_mb(server),
        **found,
    }


def overload_table(rows: Sequence[Row]) -> str:
    """Markdown, a column for each kind of text."""
    lines = []
    for row in rows:
        refused, sent = row["statuses"].get("429", 0), sum(row["statuses"].values())
        late = row["refused"] or {}
        others = {status: count for status, count in row["statuses"].items() if status not in ("200", "429")}
        lines.append({
            "": row["kind"],
            "peak, closed loop of 32, requests/s": f"{row['peak']:.1f}",
            "sent, open loop, requests/s": f"{row['offered']:.1f}",
            "answered, requests/s": f"{row['requests_per_s']:.1f}",
            "of the peak": f"{row['requests_per_s'] / row['peak']:.0%}",
            "of the answered, p50 and p99, ms": f"{_ms(row['p50_ms'])}, {_ms(row['p99_ms'])}",
            "refused with 429": f"{refused} ({refused / sent:.0%})",
            "of these with Retry-After": f"{row['with_retry_after']}",
            "of the refused, p50 and p99, ms": f"{_ms(late.get('p50_ms'))}, {_ms(late.get('p99_ms'))}",
            "anything else": ", ".join(f"{count} x {status}" for status, count in others.items()) or "0",
            "memory of the replicas before, highest, after, MB":
                f"{row['before_mb']:.0f}, {row['highest_mb']:.0f}, {row['after_mb']:.0f}",
            "first request afterwards": f"{row['first_status']} in {row['first_ms']:.0f} ms",
            "cores that the load generator took": f"{row['client_cpu_s'] / row['client_s']:.2f}",
        })  # fmt: skip
    header, *names = lines[0]
    cells = [[name, *(line[name] for line in lines)] for name in (header, *names)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _memory_mb(server: psutil.Process) -> float:
    total = 0.0
    for child in server.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(name in " ".join(child.cmdline()) for name in ("ServeReplica", "serve_app.engine_worker")):
                total += child.memory_full_info().uss / 1e6
    return total


@contextlib.contextmanager
def _watched_memory(server: psutil.Process) -> Iterator[list[float]]:
    """Fills the list with ``_memory_mb``, about once a second, at least once."""
    seen, stop = [_memory_mb(server)], threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            seen.append(_memory_mb(server))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _one_request(url: str) -> tuple[int, float]:
    """Status and milliseconds."""
    body, began = json.dumps({"text": "a single text, right afterwards"}).encode(), time.perf_counter()
    request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    return status, (time.perf_counter() - began) * 1000
