"""Promotions of one model by many real processes at once, some of them killed or stopped while they hold the lease.

Candidate i has the F1 2n/(n + 40) for the n of 40 positive texts that it finds, so all F1s differ and are known.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from gate import audit, carry_out, promotion, registry
from tests.integration.gate.conftest import ON_SQLITE_ALONE
from tests.integration.gate.racers import POINTS, TIMEOUT_S, Racer, begin, race
from tests.integration.gate.test_interruptions import assert_nothing_half_done
from tests.integration.gate.world import World
from tests.tiny import write_tiny_model

NAME = "trialgate-classifier"
WORDS = ("good", "bad", "great", "awful", "boring", "fine", "long", "short")
FOUND = (40, 38, 36, 34, 32, 30, 28, 26)  # positive texts of 40 that have the word, best candidate first
F1S = [2 * found / (found + 40) for found in FOUND]


@pytest.fixture(scope="module")
def racing_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One model for each word, which answers "positive" where the word is."""
    folder = tmp_path_factory.mktemp("racing")
    return [write_tiny_model(folder / word, rule=True, word=word) for word in WORDS]


@pytest.fixture
def candidates(world: World, racing_models: list[Path]) -> list[str]:
    """The run ids of eight trials, best first."""
    positive = [
        " ".join(["the movie", *(word for word, found in zip(WORDS, FOUND, strict=True) if index < found)])
        + " and" * (index % 3) + " plot" * (index // 3)
        for index in range(40)
    ]  # fmt: skip
    negative = [f"the film{' and' * (index % 3)}{' story' * (index // 3)}" for index in range(20)]
    world.test_digest, world.test_uri = world.freeze(positive + negative, [1] * 40 + [0] * 20)
    world.set_gate(minimum_f1=0.7)
    return [world.trial(model) for model in racing_models]


def _ended(world: World) -> dict[str, dict[str, object]]:
    """Every decision by its candidate, after all is repaired; each candidate has exactly one."""
    carry_out.repair(world.client)
    entries = audit.history(world.client, NAME)
    assert_nothing_half_done(world, entries)
    assert len({entry["run_id"] for entry in entries}) == len(entries)
    return {str(entry["run_id"]): entry for entry in entries}


@pytest.mark.slow
def test_eight_at_once_leave_the_best_in_production(world: World, candidates: list[str]) -> None:
    codes = race([Racer(world.uri, run_id) for run_id in candidates])
    assert set(codes) <= {0, 3}
    assert codes[0] == 0
    decisions = _ended(world)
    assert list(decisions.keys() - set(candidates)) == []
    for run_id, f1, code in zip(candidates, F1S, codes, strict=True):
        entry = decisions[run_id]
        assert entry["f1"] == pytest.approx(f1)
        assert entry["decision"] == ("promoted" if code == 0 else "blocked")
    status = promotion.status(world.client, NAME)
    assert status["production"]["f1"] == 1.0
    assert status["production"]["run_id"] == candidates[0]
    f1s = [version["f1"] for version in status["versions"]]
    assert f1s == sorted(f1s)  # nothing worse ever followed on something better


@pytest.mark.slow
def test_killed_holders_of_the_lease_neither_stop_the_others_nor_leave_anything(
    world: World, candidates: list[str]
) -> None:
    """The three best are killed: two before their alias moved, which never happened then, and one after it."""
    points = ["lease taken", "registered", "after the alias"]
    racers = [Racer(world.uri, run_id) for run_id in candidates]
    for index, point in enumerate(points):
        racers[index] = Racer(world.uri, candidates[index], point)
    codes = race(racers)
    assert codes[:3] == [-signal.SIGKILL] * 3
    assert set(codes[3:]) <= {0, 3}
    decisions = _ended(world)
    assert candidates[0] not in decisions  # not even begun
    assert decisions[candidates[1]]["decision"] == audit.UNDONE
    assert decisions[candidates[2]]["decision"] == "promoted"
    assert len(decisions) == 7
    assert promotion.status(world.client, NAME)["production"]["run_id"] == candidates[2]
    assert promotion.promote(world.client, run_id=candidates[0]).model_version is not None


@pytest.mark.slow
@ON_SQLITE_ALONE
def test_killed_at_every_point_one_after_the_other(world: World, candidates: list[str]) -> None:
    """Each candidate is better than those before it, dies, and the next finds whole what it left."""
    worst_first = candidates[::-1]
    production = None
    for run_id, point in zip(worst_first, POINTS, strict=False):
        assert race([Racer(world.uri, run_id, point)]) == [-signal.SIGKILL]
        decision = _ended(world).get(run_id)
        moved = point in ("after the alias", "before the end")
        assert (decision and decision["decision"]) == (
            None if point == "lease taken" else "promoted" if moved else audit.UNDONE
        )
        current = promotion.status(world.client, NAME)["production"]
        production = run_id if moved else production
        assert (current and current["run_id"]) == production


@pytest.fixture
def stopped(world: World, candidates: list[str]) -> Iterator[BaseProcess]:
    """A process that promotes the second best, and is stopped between its last look at the lease and the alias."""
    process = begin(Racer(world.uri, candidates[1], "before the alias", signal.SIGSTOP))
    assert process.pid is not None
    seen = psutil.Process(process.pid)
    try:
        while seen.status() != psutil.STATUS_STOPPED:
            process.join(0.05)
            assert process.is_alive()
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
@ON_SQLITE_ALONE
def test_stopped_holder_that_goes_on_too_late_changes_nothing(
    world: World, candidates: list[str], stopped: BaseProcess
) -> None:
    assert promotion.promote(world.client, run_id=candidates[0]).decision == "promoted"
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.join(TIMEOUT_S)
    assert stopped.exitcode == 1
    decisions = _ended(world)
    assert decisions[candidates[1]]["decision"] == audit.UNDONE
    assert promotion.status(world.client, NAME)["production"]["run_id"] == candidates[0]
    assert [str(version.version) for version in registry.versions(world.client, NAME)] == [
        decisions[candidates[0]]["model_version"]
    ]
