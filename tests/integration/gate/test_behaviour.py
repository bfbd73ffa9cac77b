"""Behavioural tests as part of a decision: shown, recorded, replayed, and blocking where the policy says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gate.__main__ import main
from tests.integration.gate.conftest import ON_SQLITE_ALONE, Gate
from tests.integration.gate.world import World

OWN = """
name: own
labels: [negative, positive]
tests:
  - {capability: praise, type: MFT, description: d, expect: {positive: [a good film, good acting], negative: [a film]}}
  - {capability: typos, type: INV, description: d, pairs: [[a good film, a godo film], [a film, a flim]]}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """What the model ``good`` does all of, but for one of two typos."""
    path = tmp_path / "own.yaml"
    path.write_text(OWN, encoding="utf-8")
    return f"gate.behaviour_suites=[{path}]"


@ON_SQLITE_ALONE
def test_least_pass_rates_block_and_the_decision_can_be_replayed(
    world: World, models: dict[str, Path], gate: Gate, own: str, tmp_path: Path
) -> None:
    run_id = world.trial(models["good"])
    code, decision = gate("check", "--run-id", run_id, "--set", own, "--set", "gate.min_behaviour.typos=0.5")
    assert code == 0
    rates = {each["name"]: each["pass_rate"] for each in decision["evidence"]["behaviour"]["capabilities"]}
    assert rates == {"praise": 1.0, "typos": 0.5}
    code, decision = gate("check", "--run-id", run_id, "--set", own, "--set", "gate.min_behaviour.typos=0.6")
    assert code == 3
    assert "typos: 1 of 2 cases passed (0.500); at least 0.6 is required" in decision["reason"]
    record = tmp_path / "decision.json"
    record.write_text(json.dumps(decision), encoding="utf-8")
    assert gate("replay", str(record))[0] == 0
    decision["evidence"]["behaviour"]["capabilities"][1].update(failures=0, pass_rate=1.0)
    record.write_text(json.dumps(decision), encoding="utf-8")
    assert gate("replay", str(record))[0] != 0


@ON_SQLITE_ALONE
def test_what_no_suite_tested_blocks(world: World, models: dict[str, Path], gate: Gate, own: str) -> None:
    run_id = world.trial(models["good"])
    code, decision = gate("check", "--run-id", run_id, "--set", own, "--set", "gate.min_behaviour.rhyme=0")
    assert code == 3
    assert "asks for rhyme, which no suite tested; tested: praise, typos" in decision["reason"]


@ON_SQLITE_ALONE
def test_a_suite_that_cannot_be_used_is_bad_usage(world: World, models: dict[str, Path], gate: Gate) -> None:
    run_id = world.trial(models["good"])
    code, document = gate("check", "--run-id", run_id, "--set", "gate.behaviour_suites=[sentimant]")
    assert code == 2
    assert "there is no suite 'sentimant'; shipped: sentiment" in document["error"]


@ON_SQLITE_ALONE
def test_pass_rates_are_shown(
    world: World, models: dict[str, Path], own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = world.trial(models["good"])
    assert main(["check", "--run-id", run_id, "--set", own]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  [info] behaviour_suite: own: 4 of 5 cases passed" in lines
    assert "  typos           2       1      0.500" in lines
    assert main(["check", "--run-id", run_id, "--set", "gate.behaviour_suites=[]"]) == 0
    assert "capability" not in capsys.readouterr().out
