"""How far a search is, in a job's log and on a terminal."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from configs.loading import load_settings
from ray_jobs import progress
from ray_jobs.live import LiveTable
from ray_jobs.progress import Progress
from ray_jobs.tracking import TrialRecord


def trial(name: str, outcome: str, f1: float | None = None, epochs: int = 0) -> TrialRecord:
    return TrialRecord(name, {"training.learning_rate": 1e-3}, 0.0, outcome, f1, epochs, epochs)  # type: ignore[arg-type]


def search(*trials: TrialRecord, total: int = 10) -> Progress:
    tracker: Any = SimpleNamespace(trials={record.trial_id: record for record in trials})
    return Progress(tracker, load_settings(None, [f"search.trials={total}", "home=/h"]), started=100.0)


@pytest.mark.parametrize(
    ("trials", "before", "line"),
    [
        ([], 0, "0 of 10 trials over after 1 min 0 s"),
        ([trial("a", "running", 0.7)], 0, "0 of 10 trials over after 1 min 0 s, best validation F1 0.7000"),
        (
            [trial("a", "finished", 0.8), trial("b", "failed", 0.9)],
            0,
            "2 of 10 trials over after 1 min 0 s, about 4 min 0 s left, best validation F1 0.8000",
        ),
        (
            [trial("a", "finished", 0.8), trial("b", "stopped_early", 0.9)],
            1,
            "2 of 10 trials over after 1 min 0 s, about 8 min 0 s left, best validation F1 0.9000",
        ),
        (
            [trial("a", "finished", 0.8), trial("b", "running", 0.7, 3)],
            0,
            "1 of 10 trials over after 1 min 0 s, about 4 min 0 s left, best validation F1 0.8000",
        ),
        ([trial(str(n), "failed") for n in range(10)], 0, "10 of 10 trials over after 1 min 0 s"),
    ],
)
def test_estimate(trials: list[TrialRecord], before: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = search(*trials)
    state.over_before = before
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 160.0))
    assert state.line() == line


def test_the_live_table_fits_the_terminal_and_shows_what_runs_first() -> None:
    records = [trial(f"done{n:02}", "finished", 0.5 + n / 100, 3) for n in range(30)]
    records += [trial("runs", "running", 0.4, 1), trial("broken", "failed")]
    console = Console(file=io.StringIO(), width=80, height=16)
    console.print(LiveTable(lambda: records, lambda: "how far", 3))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < 16
    assert lines[0] == "how far"
    assert lines[2].split() == ["runs", "running", "1/3", "0.4000", "0.001"]
    assert lines[3].split() == ["done29", "finished", "3/3", "0.7900", "0.001"]
    assert lines[-1] == "and 22 more"


def test_a_narrow_terminal_cuts_parameters_and_never_wraps() -> None:
    record = trial("0123abcd", "stopped_early", 0.91234, 2)
    record.parameters = {f"model.a_rather_long_name_{number}": 0.123456 for number in range(8)}
    console = Console(file=io.StringIO(), width=80, height=20)
    console.print(LiveTable(lambda: [record], lambda: "how far", 3))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert lines[2].split() == ["0123abcd", "stopped", "early", "2/3", "0.9123", "0.123"]


def test_lines_of_a_jobs_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracker:
        def __init__(self) -> None:
            self.trials: dict[str, TrialRecord] = {}

        def trial_started(self, trial_id: str, parameters: dict[str, Any]) -> None:
            self.trials[trial_id] = TrialRecord(trial_id, parameters, time.time())

        def trial_ended(self, trial_id: str, outcome: Any, error: str | None = None) -> None:
            self.trials[trial_id].outcome = outcome

    monkeypatch.setattr(progress, "failure_message", lambda trial: "OutOfMemoryError: 3 GB")
    monkeypatch.setattr(progress, "release_workers", lambda trial_id: None)  # it asks Ray
    tracker: Any = Tracker()
    tune_trial: Any = SimpleNamespace(trial_id="ab12", config={"training.learning_rate": 1e-3}, last_result={})
    with progress.TrackingCallback.of(tracker, "s", load_settings(None, ["search.trials=2", "home=/h"])) as callback:
        callback.on_trial_start(0, [], tune_trial)
        callback.on_trial_error(0, [], tune_trial)
    assert capsys.readouterr().err.splitlines() == [
        "trial ab12: begins with training.learning_rate 0.001",
        "trial ab12: failed: OutOfMemoryError: 3 GB",
        "1 of 2 trials over after 0 s, about 0 s left",
    ]
