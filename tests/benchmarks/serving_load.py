"""A load generator in a process of its own: requests to ``/predict`` (with ``--batch``: ``/batch_predict``), closed or
open loop; prints one JSON document.

    python -m tests.benchmarks.serving_load URL --texts FILE.json --concurrency 32 --seconds 20
    python -m tests.benchmarks.serving_load URL --texts FILE.json --rate 80 --seconds 20

Closed loop: ``--concurrency`` clients, each of which sends its next request when it has its answer. Open loop:
``--rate`` requests per second at random (Poisson) times, whether answers come or not, and a latency counts from the
time when the request was due, so a server that falls behind cannot hide it (no coordinated omission).

It shares the cores with what it measures, so it does little itself: its connections are on uvloop and httptools alone.
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
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

_MOST_OPEN = 2000  # requests in flight of an open loop: beyond that the server is lost anyway


class Connection(asyncio.Protocol):
    """One request at a time over HTTP/1.1, to a server whose answers say their length."""

    def __init__(self, idle: list[Connection]) -> None:
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._said_when = False
        self._answer: asyncio.Future[tuple[str, bool]] | None = None

    @property
    def is_closing(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._transport.is_closing()

    async def ask(self, request: bytes, timeout: float) -> tuple[str, bool]:
        """The status of the answer, or what went wrong, and whether it says when to try again."""
        if self.is_closing:
            return ConnectionResetError.__name__, False
        loop = asyncio.get_running_loop()
        self._said_when, self._answer = False, loop.create_future()
        late = loop.call_later(timeout, self._end, TimeoutError.__name__)
        try:
            self._transport.write(request)
            return await self._answer
        finally:
            late.cancel()

    def _end(self, problem: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((problem, False))
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        if self in self._idle:
            self._idle.remove(self)
        else:
            self._end(type(error or ConnectionResetError()).__name__)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(type(error).__name__)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._said_when |= name.lower() == b"retry-after"

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((str(self._parser.get_status_code()), self._said_when))
            if self._parser.should_keep_alive():
                self._idle.append(self)
                return
        self._transport.close()


class Client:
    """POSTs JSON to one route, over as many connections as there are requests in work. ``timeout``: seconds."""

    def __init__(self, url: str, timeout: float) -> None:
        self._parts, self._timeout = urlsplit(url), timeout
        self._idle: list[Connection] = []

    def request(self, body: bytes) -> bytes:
        """What is sent."""
        head = f"POST {self._parts.path} HTTP/1.1\r\nhost: {self._parts.netloc}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def post(self, request: bytes) -> tuple[str, bool]:
        """The status of the answer, or what went wrong, and whether it says when to try again."""
        while self._idle:
            if not (connection := self._idle.pop()).is_closing:
                return await connection.ask(request, self._timeout)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._idle), self._parts.hostname or "", self._parts.port or 80
                )
        except OSError as error:  # TimeoutError is one
            return type(error).__name__, False
        return await connection.ask(request, self._timeout)


class Load:
    """What was sent and what came back. ``latencies``: seconds of the answers that counted, in order of arrival."""

    def __init__(self, client: Client, bodies: Sequence[bytes], counts_from: float) -> None:
        self._client, self._counts_from = client, counts_from
        self._requests = [client.request(body) for body in bodies]
        self._sent = 0
        self.latencies: list[float] = []
        self.refused_latencies: list[float] = []
        self.with_retry_after = 0
        self.statuses: Counter[str] = Counter()

    async def send(self, due: float) -> None:
        """One request; its latency counts from ``due`` (perf_counter)."""
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        status, said_when = await self._client.post(request)
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
    began = time.perf_counter() + options.warm_up
    route = "batch_predict" if options.batch else "predict"
    load = Load(Client(f"{options.url}/{route}", options.timeout), bodies, began)
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
    json.dump(uvloop.run(run(options, json.loads(Path(options.texts).read_text(encoding="utf-8")))), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
