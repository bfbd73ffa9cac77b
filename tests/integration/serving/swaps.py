"""Moves of the alias between good versions under load, and what they leave behind: for the test and the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.serving.world import Hammer, Service, copies, processes, wait_until

PROMISED_S = 20.0
_WARM_UP_MOVES = 4  # memory is level after the first few


@dataclass(frozen=True)
class State:
    """Of all replicas together: ``rss_mb``, ``own_mb`` (of that not shared, USS), ``threads``; of the cache: ``copies``
    (versions) and ``disk_mb``."""

    rss_mb: float
    own_mb: float
    threads: int
    copies: list[str]
    disk_mb: float


@dataclass(frozen=True)
class Moved:
    """``hammer`` has every request; ``seconds``: of each move, until all replicas served the version."""

    hammer: Hammer
    seconds: list[float]
    before: State
    after: State


def state(service: Service, replicas: int) -> State:
    """As it is now."""
    found = processes("ServeReplica:trialgate:classifier")
    assert len(found) == replicas
    found += [engines for replica in found for engines in replica.children()]
    memory = [process.memory_full_info() for process in found]
    files = [path for path in Path(service.settings.serving.cache_dir or "").rglob("*") if path.is_file()]
    return State(
        rss_mb=sum(one.rss for one in memory) / 1e6,
        own_mb=sum(one.uss for one in memory) / 1e6,
        threads=sum(process.num_threads() for process in found),
        copies=copies(service.settings),
        disk_mb=sum(path.stat().st_size for path in files) / 1e6,
    )


def move(
    service: Service,
    versions: Sequence[str],
    moves: int,
    *,
    replicas: int = 2,
    clients: int = 4,
    progress: Callable[[int, Hammer], None] = lambda move, hammer: None,
) -> Moved:
    """Moves the alias in turn to each of two ``versions``, of which the first is served, while ``clients`` send without
    pause. Every move waits until all replicas have followed; one that takes longer than PROMISED_S fails."""

    def to(number: int) -> None:
        version = versions[(number + 1) % 2]
        service.registry.promote(version)
        service.wait_for_version(version, replicas, PROMISED_S)

    seconds = []
    with Hammer(service, threads=clients) as hammer:
        for number in range(_WARM_UP_MOVES):
            to(number)
        before = state(service, replicas)
        for number in range(moves):
            began = time.monotonic()
            to(number)
            seconds.append(time.monotonic() - began)
            progress(number + 1, hammer)
        answered = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered + 20, 30)
        after = state(service, replicas)
    return Moved(hammer, seconds, before, after)
