"""The access log, one line of JSON for every answered request, and where replicas log.

A line has nothing of the texts, no key, and nothing of the client's making but the request id, which is printable ASCII
and JSON-encoded: routes and methods that are not ours are "other".
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import logging.handlers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.edge import Exchange

_HELD_S = 0.25
access_logger = logging.getLogger("trialgate.access")


def log_access(exchange: Exchange, route: str, method: str, status: int, seconds: float) -> None:
    """Writes the line of one request; ``seconds``: from its first byte to its answer."""
    if access_logger.isEnabledFor(logging.INFO):
        access_logger.info("%s", _Line(exchange, route, method, status, seconds, datetime.datetime.now(datetime.UTC)))


@dataclass(frozen=True)
class _Line:
    """What ``access_line`` is made from when it is written: many together, which is cheaper, and after the answers."""

    exchange: Exchange
    route: str
    method: str
    status: int
    seconds: float
    now: datetime.datetime

    def __str__(self) -> str:
        return access_line(self.exchange, self.route, self.method, self.status, self.seconds, self.now)


def access_line(
    exchange: Exchange, route: str, method: str, status: int, seconds: float, now: datetime.datetime
) -> str:
    """One JSON object without a line break. ``now``: when it was answered, UTC."""
    phases = {**exchange.phases, "total": seconds}
    return json.dumps(
        {
            "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": exchange.request_id,
            "method": method,
            "route": route,
            "status": status,
            "error": exchange.error or None,
            "model_version": exchange.model_version,
            "texts": exchange.texts,
            "body_bytes": exchange.body_bytes,
            "ms": {name: round(spent * 1000, 3) for name, spent in phases.items()},
        }
    )


def log_to_replica_file() -> None:
    """Sends the access lines, as they are and several at once, and what the application logs, in Serve's format, into
    the log file of the Ray Serve replica that this process is.

    Straight to the file's handler: in throughput-optimized mode Serve holds back up to 1000 records before it, among
    them all that goes to standard error.
    """
    serves = logging.getLogger("ray.serve").handlers
    targets = [handler.target if isinstance(handler, logging.handlers.MemoryHandler) else handler for handler in serves]
    handlers: list[logging.Handler] = [target for target in targets if isinstance(target, logging.FileHandler)]
    if not handlers:
        handlers = [logging.StreamHandler()]  # Ray keeps what a worker prints
    for logger, its_handlers in ((access_logger, [_Together(handlers)]), (logging.getLogger(__package__), handlers)):
        if not logger.handlers:  # else done before
            logger.setLevel(logging.INFO)
            logger.propagate = False
            logger.handlers = list(its_handlers)
    for handler in handlers:
        if not isinstance(handler.formatter, _LinesAsTheyAre):
            handler.setFormatter(_LinesAsTheyAre(handler.formatter))


def flush_access_log() -> None:
    """Writes the lines that are held back."""
    for handler in access_logger.handlers:
        handler.flush()


class _Together(logging.Handler):
    """Hands records on a few times a second, their messages as the lines of one.

    A file's handler looks for the file and flushes for every record, which took a fifth of the event loop's time when
    hundreds of requests a second were refused. Without an event loop, at once.
    """

    def __init__(self, targets: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._targets, self._held = list(targets), list[logging.LogRecord]()
        self._going_to_flush: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._held.append(record)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._going_to_flush is not loop:
            self._going_to_flush = loop
            loop.call_later(_HELD_S, self.flush)

    def flush(self) -> None:
        held, self._held, self._going_to_flush = self._held, [], None
        if not held:
            return
        lines = "\n".join(record.getMessage() for record in held)
        together = logging.makeLogRecord({**held[0].__dict__, "msg": lines, "args": None})
        for target in self._targets:
            target.handle(together)


class _LinesAsTheyAre(logging.Formatter):
    """Leaves access lines alone, and everything else to ``other``."""

    def __init__(self, other: logging.Formatter | None) -> None:
        super().__init__()
        self._other = other or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == access_logger.name else self._other.format(record)
