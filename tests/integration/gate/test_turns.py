"""A promotion takes its turn only to act: whatever takes long is done while others may have theirs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from gate import judgement, lease, promotion, registry
from tests.integration.gate.conftest import ON_SQLITE_ALONE
from tests.integration.gate.world import World

NAME = "trialgate-classifier"
LEASE = f"{NAME}{lease.SUFFIX}"


class Witness:
    """Notes every scoring and measuring, and whether somebody had the turn meanwhile."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self.seen: list[tuple[str, bool]] = []
        for name in ("score_model", "measure_speed", "behaviour_of"):
            monkeypatch.setattr(judgement, name, self._noting(getattr(judgement, name)))

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            open_tickets = self._world.client.search_model_versions(
                f"name='{LEASE}' and tags.`{lease.STATE}` = '{lease.OPEN}'"
            )
            what = " ".join(filter(None, (function.__name__, named.get("what"))))
            self.seen.append((what, len(open_tickets) > 0))
            return function(*arguments, **named)

        return call


def _before_each_turn(monkeypatch: pytest.MonkeyPatch, happens: list[Callable[[], object]]) -> None:
    """Lets the next of ``happens`` be done by somebody else before each turn that a promotion takes."""

    def make(*arguments: Any) -> lease.Lease:
        if happens:
            happens.pop(0)()
        return lease.Lease(*arguments)

    monkeypatch.setattr(promotion, "Lease", make)


def test_judging_again_keeps_nobody_waiting_and_does_nothing_twice(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the candidate waits for its turn another one is promoted, whose score on this split nobody has stored."""
    world.set_gate(behaviour_suites=["sentiment"])
    rival, candidate = world.trial(models["good"]), world.trial(models["good-too"])

    def promote_rival() -> None:
        monkeypatch.setattr(promotion, "Lease", lease.Lease)
        assert promotion.promote(world.client, run_id=rival).model_version == "1"
        for kept in world.client.list_artifacts(rival, "scores"):
            world.client.log_text(rival, "{}", f"{kept.path}/score.json")
        witness.seen.clear()

    _before_each_turn(monkeypatch, [promote_rival])
    witness = Witness(world, monkeypatch)
    decision = promotion.promote(world.client, run_id=candidate)
    assert (decision.decision, decision.model_version, decision.baseline_version) == ("promoted", "2", "1")
    assert decision.baseline_f1 == 1.0
    assert registry.aliases(world.client, NAME) == {"production": "2", "previous": "1"}
    assert witness.seen == [("score_model production (version 1)", False), ("measure_speed", False)]


@ON_SQLITE_ALONE
def test_whoever_is_overtaken_each_time_keeps_the_last_turn(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.set_gate(behaviour_suites=["sentiment"])
    first, candidate = world.trial(models["good"]), world.trial(models["good-too"])
    assert promotion.promote(world.client, run_id=first).passed
    judged: list[bool] = []
    judge = judgement.Judge.judge

    def noting(self: judgement.Judge, *arguments: Any, **named: Any) -> judgement.Judgement:
        tickets = world.client.search_model_versions(f"name='{LEASE}' and tags.`{lease.STATE}` = '{lease.OPEN}'")
        judged.append(len(tickets) > 0)
        return judge(self, *arguments, **named)

    def other_alias(alias: str) -> Callable[[], object]:
        return lambda: world.client.set_registered_model_alias(NAME, alias, "1")

    monkeypatch.setattr(judgement.Judge, "judge", noting)
    turns = promotion.TURNS_GIVEN_BACK + 1
    changes = [other_alias(f"of-somebody-{number}") for number in range(turns + 5)]
    _before_each_turn(monkeypatch, changes)
    witness = Witness(world, monkeypatch)
    assert promotion.promote(world.client, run_id=candidate).model_version == "2"
    assert judged == [False] * turns + [True]
    assert len(changes) == 5
    assert [what for what, _ in witness.seen] == [
        f"score_model the candidate (run {candidate})",
        "score_model production (version 1)",
        "behaviour_of",
        "measure_speed",
    ]


class Counting:
    """A client that counts its calls by name. Heartbeats, which time decides on, are not counted."""

    def __init__(self, client: MlflowClient) -> None:
        self._client, self.calls = client, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.calls[name] += 1
            return value(*arguments, **named)

        return call


@ON_SQLITE_ALONE
def test_what_is_known_is_not_asked_again(world: World, models: dict[str, Path]) -> None:
    """Each call is a round trip, and those of a turn are what others wait for."""

    def counted(model: str) -> tuple[bool, Counter[str]]:
        counting: Any = Counting(world.client)
        decision = promotion.promote(counting, run_id=runs[model])
        return decision.changed, counting.calls

    runs = {name: world.trial(models[name]) for name in ("good", "good-too")}
    assert promotion.promote(world.client, run_id=runs["good"]).changed
    changed, calls = counted("good-too")
    assert changed
    assert calls.total() <= 76, calls  # five of them put the new score on its run
    assert calls["get_registered_model"] <= 7, calls
    assert calls["get_run"] <= 7, calls
    changed, calls = counted("good-too")  # is production already
    assert not changed
    assert calls.total() <= 14, calls


@ON_SQLITE_ALONE
def test_blocked_by_what_came_before_its_turn(
    world: World, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed against no production, and does not against what was promoted meanwhile."""
    rival, candidate = world.trial(models["good"]), world.trial(models["bad"])
    settings = world.settings.model_copy(update={"gate": world.settings.gate.model_copy(update={"minimum_f1": 0.1})})

    def promote_rival() -> None:
        monkeypatch.setattr(promotion, "Lease", lease.Lease)
        assert promotion.promote(world.client, run_id=rival).passed

    _before_each_turn(monkeypatch, [promote_rival])
    decision = promotion.promote(world.client, settings, run_id=candidate)
    assert (decision.decision, decision.baseline_f1) == ("blocked", 1.0)
    assert registry.aliases(world.client, NAME) == {"production": "1"}
    assert len(registry.versions(world.client, NAME)) == 1
