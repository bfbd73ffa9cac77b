"""Connecting to Ray, and what the cluster can hold."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from configs.exit_codes import CommandFailed
from configs.loading import ConfigError
from configs.search import SearchConfig
from ray_jobs.command import say
from serve_app.mode import fast_path
from serve_app.ray_address import join, require_entry

_TELL_SECONDS = 15.0


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray."""

    address: str
    dashboard_url: str | None


@contextlib.contextmanager
def connected(home: str | None) -> Iterator[Cluster]:
    """Connects to the cluster of RAY_ADDRESS (``auto``: the one that runs on this machine), else starts a local one.

    Without RAY_ADDRESS nothing is joined, because what Ray finds by itself may be anybody's. A local one keeps its
    authentication token in ``home`` (mode 0600), its session under a short temporary directory that is removed at the
    end, and its dashboard on loopback. Raises Unreachable.
    """
    import ray

    _quiet_environment()
    if ray.is_initialized():
        yield Cluster(ray.get_runtime_context().gcs_address, None)
        return
    guard: subprocess.Popen[bytes] | None = None
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            context = join(address)
        else:
            own_token(home)
            temporary = tempfile.mkdtemp(prefix="tg-")
            port = free_port(8265, "Ray's dashboard")
            guard = _guarded(temporary)
            # One more process of 110 MB per trial, which watches for nodes that a cloud takes back: not here.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            with fast_path(), no_interrupt_lost():
                context = join("local", _temp_dir=temporary, dashboard_host="127.0.0.1", dashboard_port=port)
    except BaseException:
        _released(guard)
        raise
    url = context.dashboard_url
    try:
        yield Cluster(ray.get_runtime_context().gcs_address, f"http://{url}" if url else None)
    finally:
        ray.shutdown()
        _released(guard)


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """A Ctrl-C that did not get through is raised at the end of the block.

    Starting Ray forks often, and Python calls hooks then (of logging, for instance) in which an exception is printed
    and forgotten.
    """
    handler, interrupted = signal.getsignal(signal.SIGINT), False
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    report = sys.unraisablehook

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        handler(number, frame)

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)

    signal.signal(signal.SIGINT, remember)
    sys.unraisablehook = report_others
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = report
        if interrupted:
            raise KeyboardInterrupt


def look_for_cluster() -> None:
    """Raises what would keep ``connected`` out of the cluster at RAY_ADDRESS, before anything has taken time."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address and not ray.is_initialized():
        require_entry(address)


def starts_locally() -> bool:
    """Whether ``connected`` would start a Ray of its own."""
    import ray

    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


def local_resources() -> dict[str, float]:
    """What a Ray on this machine would have, as far as searches ask for it."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


def own_token(home: str | None) -> None:
    """Puts the token of a local cluster into ``home``, readable by its owner alone; Ray would write it 0644."""
    if home is None or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path(home) / "ray_auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    # Only the path: ray.init switches the mode on itself, and in all of its parts, which this late we could not.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def free_port(wanted: int, what: str) -> int:
    """``wanted``, or the next free port of loopback after it, which is then named."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port != wanted:
            say(f"port {wanted} is in use: {what} takes {port}")
        return port
    raise CommandFailed(f"no free port for {what} between {wanted} and {wanted + 99}")


def concurrent_trials(search: SearchConfig, nodes: list[dict[str, float]] | None = None) -> int:
    """How many trials run at once: ``search.max_concurrent``, but never more than the cluster's nodes hold.

    ``nodes``: total resources of each living node (default: asked of Ray). Raises ConfigError, with the arithmetic,
    when not even one trial fits.
    """
    nodes = living_nodes() if nodes is None else nodes
    fitting = _places(search, nodes) // search.workers
    if not fitting:
        raise ConfigError(f"{arithmetic(search, nodes)}. Lower search.gpus_per_trial, search.cpus_per_trial or "
                          "search.workers_per_trial, or add nodes")  # fmt: skip
    return min(fitting, search.max_concurrent or fitting, search.trials)


def living_nodes() -> list[dict[str, float]]:
    """Total resources of each living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def arithmetic(search: SearchConfig, nodes: list[dict[str, float]]) -> str:
    """In words, what a trial needs and what the ``nodes`` have room for."""
    cpus, gpus = search.cpus_per_trial / search.workers, search.gpus_per_trial / search.workers
    found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return (
        f"a trial needs {search.workers} worker(s) of {cpus:g} CPUs and {gpus:g} GPUs each, and the cluster has room "
        f"for {_places(search, nodes)} such worker(s): its nodes have {found}"
    )


def wait_for_room(search: SearchConfig) -> int:
    """How many trials run at once on the connected cluster, which may have to grow first.

    With ``search.cluster_wait_s`` the autoscaler is asked for what ``search.max_concurrent`` trials need, and as soon
    as one fits the search can begin: the others make the cluster grow by waiting for their place. Raises ConfigError.
    """
    from ray.autoscaler.sdk import request_resources

    if not search.cluster_wait_s:
        return concurrent_trials(search)
    wanted = min(search.max_concurrent or 1, search.trials)
    bundle = {"CPU": search.cpus_per_trial / search.workers, "GPU": search.gpus_per_trial / search.workers}
    # The autoscaler counts in whole units.
    shape = {name: math.ceil(amount) for name, amount in bundle.items() if amount}
    request_resources(bundles=[shape] * (search.workers * wanted))
    started = tell = time.monotonic()
    try:
        while True:
            try:
                fitting = concurrent_trials(search)
                return max(fitting, wanted)
            except ConfigError as error:
                waited = time.monotonic() - started
                if waited > search.cluster_wait_s:
                    raise ConfigError(f"after {waited:.0f} s (search.cluster_wait_s): {error}") from None
            if time.monotonic() >= tell:
                tell = time.monotonic() + _TELL_SECONDS
                say(f"waiting for the cluster to hold a trial ({waited:.0f} of {search.cluster_wait_s:g} s): "
                    f"{search.workers} x {shape}")  # fmt: skip
            time.sleep(1)
    finally:
        request_resources(bundles=[])


def _places(search: SearchConfig, nodes: list[dict[str, float]]) -> int:
    # A worker cannot be split over nodes, a trial's workers can.
    cpus, gpus = search.cpus_per_trial / search.workers, search.gpus_per_trial / search.workers
    return sum(slots(node, cpus, gpus) for node in nodes)


def slots(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many processes of ``cpus`` and ``gpus`` the ``node`` (its total resources) holds."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    # A fraction of a GPU never spans two of them.
    per_gpu = math.floor(1 / gpus + 1e-9)
    by_gpu = int(node.get("GPU", 0)) * per_gpu if gpus <= 1 else math.floor(node.get("GPU", 0) / gpus)
    return min(by_cpu, by_gpu)


def _quiet_environment() -> None:
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "RAY_DEDUP_LOGS": "0",
        # A trial is several processes, most of them idle; Ray warns when there are more than four times this number.
        "RAY_worker_maximum_startup_concurrency": "16",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it ends the MLflow runs too
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }.items():
        os.environ.setdefault(name, value)


# Waits until its standard input closes, which happens however the process that started it ends. Then it kills what has
# a file of this session open (but never its starter, which has logs open there), and removes the session. Without it
# Ray's agents look for their cluster for a minute and more after a kill -9.
_GUARD = """
cat >/dev/null
for process in /proc/[0-9]*; do
    [ "$process" = "/proc/$2" ] && continue
    if ls -l "$process/fd" 2>/dev/null | grep -qF "$1/"; then kill -KILL "${process#/proc/}" 2>/dev/null; fi
done
rm -rf "$1"
"""


def _guarded(session: str) -> subprocess.Popen[bytes]:
    """A process that removes every trace of ``session`` when this one is gone or releases it."""
    command = ["/bin/sh", "-c", _GUARD, "guard", session, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _released(guard: subprocess.Popen[bytes] | None) -> None:
    if guard is not None and guard.stdin is not None:
        guard.stdin.close()
        guard.wait()
