"""A load generator in a process of its own: requests to ``/predict`` (with ``--batch``: ``/batch_predict``), closed or
open loop; prints one JSON document.

    python -m tests.benchmarks.serving_load URL --texts FILE.json --concurrency 32 --seconds 20
    python -m tests.benchmarks.serving_load URL --texts FILE.json --rate 80 --seconds 20

Closed loop: ``--concurrency`` clients, each of which sends its next request when it has its answer. Open loop:
``--rate`` requests per second at random (Poisson) times, whether answers come or not, and a latency counts from the
time when the request was due, so a server that falls behind cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

_MOST_OPEN = 2000  # requests in flight of an open loop: beyond that the server is lost anyway


class Load:
    """What was sent and what came back. ``latencies``: seconds of the answers that counted, in order of arrival."""

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: Sequence[bytes], counts_from: float) -> None:
        self._session, self._url, self._bodies, self._counts_from = session, url, bodies, counts_from
        self._sent = 0
        self.latencies: list[float] = []
        self.refused_latencies: list[float] = []
        self.with_retry_after = 0
        self.statuses: Counter[str] = Counter()

    async def send(self, due: float) -> None:
        """One request; its latency counts from ``due`` (perf_counter)."""
        body = self._bodies[self._sent % len(self._bodies)]
        self._sent += 1
        try:
            async with self._session.post(self._url, data=body, headers={"content-type": "application/json"}) as answer:
                await answer.read()
                status, said_when = str(answer.status), "Retry-After" in answer.headers
        except (aiohttp.ClientError, TimeoutError) as error:
            status, said_when = type(error).__name__, False
        if due < self._counts_from:
            return
        self.statuses[status] += 1
        if status == "200":
            self.latencies.append(time.perf_counter() - due)
        elif status == "429":
            self.refused_latencies.append(time.perf_counter() - due)
            self.with_retry_after += said_when


async def closed_loop(load: Load, concurrency: int, until: float) -> None:
    """``concurrency`` clients that each wait for their answer."""

    async def client() -> None:
        while (now := time.perf_counter()) < until:
            await load.send(now)

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def open_loop(load: Load, rate: float, until: float, seed: int) -> None:
    """Requests at Poisson times, ``rate`` per second."""
    times, due = random.Random(seed), time.perf_counter()
    running: set[asyncio.Task[None]] = set()
    while (due := due + times.expovariate(rate)) < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(running) >= _MOST_OPEN:
            load.statuses["not sent"] += 1
            continue
        task = asyncio.create_task(load.send(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


async def run(options: argparse.Namespace, texts: Sequence[str]) -> dict[str, Any]:
    """Warms up, sends, and sums up."""
    if options.batch:
        parts = [texts[place : place + options.batch] for place in range(0, len(texts), options.batch)]
        bodies = [json.dumps({"texts": part}).encode() for part in parts]
    else:
        bodies = [json.dumps({"text": text}).encode() for text in texts]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=options.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter() + options.warm_up
        route = "batch_predict" if options.batch else "predict"
        load = Load(session, f"{options.url}/{route}", bodies, began)
        until = began + options.seconds
        if options.rate:
            await open_loop(load, options.rate, until, options.seed)
        else:
            await closed_loop(load, options.concurrency, until)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests_per_s": len(load.latencies) / options.seconds,
        **percentiles(load.latencies),
        "refused": percentiles(load.refused_latencies) if load.refused_latencies else None,
        "with_retry_after": load.with_retry_after,  # of the refused
        "statuses": dict(load.statuses),
        "client_cpu_s": usage.ru_utime + usage.ru_stime,
        "client_s": time.perf_counter() - began + options.warm_up,
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """The median and the tail, ms; None when there is nothing."""
    names = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
    if not seconds:
        return dict.fromkeys(names)
    return {name: float(np.percentile(seconds, at)) * 1000 for name, at in names.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--texts", required=True, help="JSON file with a list of texts")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--batch", type=int, help="texts per request, to /batch_predict")
    parser.add_argument("--rate", type=float, help="requests per second; without it the loop is closed")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before it counts")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one request")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    json.dump(asyncio.run(run(options, json.loads(Path(options.texts).read_text(encoding="utf-8")))), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
