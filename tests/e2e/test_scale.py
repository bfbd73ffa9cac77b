"""The commands of docs/scale.md, with counts that fit a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.processes import Command


def rows(output: str) -> dict[str, str]:
    """The last column of a printed table, by the first."""
    cells = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in cells}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_simulated_search_handles_every_result_of_every_trial(tmp_path: Path) -> None:
    sets = ("--set", "search.scheduler=none")
    command = Command("tests.benchmarks.scale_search", "--trials", "8", "--epochs", "2", *sets, cwd=tmp_path)
    assert command.finished(150) == 0, command.output
    found = rows(command.output)
    assert found["trials, at a time at most"] == "8, 8"
    assert found["results that Tune's loop handled"] == "24"  # two epochs of each, and its end
    assert "8 of 8 trials over" in command.output
    assert float(found["loop: processor ms per result"]) > 0
    assert float(found["writer to MLflow: processor ms per result"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_start_and_follow_the_alias(tmp_path: Path) -> None:
    options = ("--replicas", "2", "--idle", "2", "--moves", "1")
    command = Command("tests.benchmarks.scale_serving", *options, cwd=tmp_path)
    assert command.finished(270) == 0, command.output
    found = rows(command.output)
    assert float(found["start of one replica: processor s"]) > 0
    assert float(found["idle: controller, % of a core"]) > 0
