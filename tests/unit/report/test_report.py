"""The report of a search: every picture of a realistic one, and something to read whatever a search left."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.loading import ConfigError, load_settings
from configs.schema import Settings
from configs.search import SearchConfig
from ray_jobs.figures import PICTURES, NothingToDraw, pareto_front, timeline
from ray_jobs.history import Attempt, read_search
from ray_jobs.journal import Journal
from ray_jobs.report import BEST, NOTE, description, leave, main, publish, to_mlflow, write
from ray_jobs.search import abort, finish
from ray_jobs.tracking import Tracker
from serve_app import mlflow_client as names
from tests.unit.report.journals import SPACE, epoch, realistic, write_search

PARAMETERS = {
    "training.learning_rate": 1e-4,
    "model.dropout": 0.1,
    "training.batch_size": 16,
    "training.schedule": "linear",
}


def trial(
    name: str, f1s: list[float], start: float = 0.0, outcome: str = "finished", error: str | None = None, **given: Any
) -> list[dict[str, Any]]:
    """Events of one trial whose epochs took 10 seconds each."""
    parameters = given.get("parameters", PARAMETERS)
    events: list[dict[str, Any]] = [{"time": start, "event": "started", "trial": name, "parameters": parameters}]
    best = (-1.0, 0)
    for number, f1 in enumerate(f1s, start=1):
        best = best if best[0] >= f1 else (f1, number)
        events.append(epoch(start + 10 * number, name, number, f1, best, 10.0))
    end = start + 10 * len(f1s) + 1
    return [*events, {"time": end, "event": "ended", "trial": name, "outcome": outcome, "error": error}]


def drawn(folder: Path) -> tuple[str, list[str]]:
    """The written page, and what stands where a picture could not be drawn."""
    write(str(folder), folder.name)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, re.findall(r'<p class="none">([^<]*)</p>', text)


def test_realistic_search_has_every_picture_and_needs_no_network(tmp_path: Path) -> None:
    text, missing = drawn(write_search(tmp_path / "imdb", realistic()))
    assert missing == []
    assert text.count('class="plotly-graph-div"') == len(PICTURES) == 6
    assert text.count("<tr") == 25
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", text)
    assert text.count("plotly.js v") == 1
    assert "2 failed" in text
    assert "1 killed" in text


DEGENERATE: dict[str, tuple[list[dict[str, Any]], int]] = {
    "no trial": ([], 6),
    "one trial": (trial("a", [0.7, 0.8]), 2),
    "one trial without an epoch": (trial("a", [], outcome="killed"), 4),
    "all failed": (trial("a", [], outcome="failed", error="<b>boom</b>") + trial("b", [], 5.0, "failed", "x"), 4),
    "failed after an epoch": (trial("a", [0.5], outcome="failed", error="boom"), 2),
    "constant F1": ([event for n in range(6) for event in trial(f"t{n}", [0.5], 20.0 * n)], 1),
    "NaN": (trial("a", [math.nan]) + trial("b", [0.6], 20.0), 2),
    "only NaN": (trial("a", [math.nan]), 3),
    "still running": (trial("a", [0.7, 0.8])[:-1], 2),
    "unknown events": ([{"event": "resumed"}, {"time": 1.0, "event": "budget", "trial": "z"}, *trial("a", [0.7])], 2),
    "parameters of elsewhere": (trial("a", [0.7], parameters={"training.weight_decay": 0.1}), 2),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_report_of_a_search_that_went_wrong(case: str, tmp_path: Path) -> None:
    events, missing = DEGENERATE[case]
    text, reasons = drawn(write_search(tmp_path / "odd", events))
    assert len(reasons) == missing
    assert "could not be drawn" not in " ".join(reasons)
    assert "<b>boom</b>" not in text


def test_several_objectives_have_their_front(tmp_path: Path) -> None:
    changes = SPACE | {"search.objectives": "[f1 max, parameters min]", "search.max_f1_drop": "0.03"}
    folder = write_search(tmp_path / "two", realistic(), changes)
    text, missing = drawn(folder)
    assert missing == []
    assert text.count('class="plotly-graph-div"') == len(PICTURES) + 1
    search = read_search(str(folder), "two")
    assert search.winner is not None
    assert search.winner.f1 != max(trial.f1 or 0.0 for trial in search.trials)
    assert f"Trial {search.winner.number} goes to the gate" in text
    assert "is the least within 0.03 of the highest F1" in description(search, "parent", "7", {}, "r")


def test_several_objectives_of_which_nothing_came(tmp_path: Path) -> None:
    changes = SPACE | {"search.objectives": "[f1 max, parameters min]"}
    _, missing = drawn(write_search(tmp_path / "two", trial("a", [], outcome="failed", error="x"), changes))
    assert missing[0] == "No trial has a value in every objective."


def test_search_without_a_space(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "plain", trial("a", [0.7, 0.8], parameters={}), space={})
    _, reasons = drawn(folder)
    assert reasons == ["Nothing was searched: search.space is empty."] * 2


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(optuna.visualization, "plot_parallel_coordinate", broken)
    _, reasons = drawn(write_search(tmp_path / "imdb", realistic()))
    assert reasons == ["This picture could not be drawn."]
    assert "picture 'Parameters and F1' could not be drawn: RuntimeError: no" in capsys.readouterr().err


def test_history_keeps_attempts_slots_and_what_stopping_saved(tmp_path: Path) -> None:
    first = trial("a", [0.5, 0.6], 0.0, "killed")
    again = trial("a", [0.5, 0.6, 0.7, 0.8, 0.8, 0.8], 1000.0)
    other = trial("b", [0.4], 1005.0, "stopped_early")
    search = read_search(str(write_search(tmp_path / "s", [*first, *again, *other])), "s")
    winner, stopped = search.trials
    assert search.winner is winner
    assert [entry.number for entry in winner.epochs] == [1, 2, 3, 4, 5, 6]
    assert winner.attempts == [Attempt(0.0, 21.0, 0), Attempt(1000.0, 1061.0, 0)]
    assert stopped.attempts == [Attempt(1005.0, 1016.0, 1)]
    assert search.slots == 2
    assert search.pauses == [[21.0, 1000.0]]
    assert search.seconds == 21 + 61
    assert (winner.saved_seconds, stopped.saved_seconds) == (0.0, 50.0)


def test_an_attempt_that_was_lost_has_its_own_bar_and_tells_why(tmp_path: Path) -> None:
    first, second = trial("a", [0.5])[:-1], trial("a", [0.5, 0.6], 100.0)
    lost = {"time": 30.0, "event": "attempt_failed", "trial": "a", "error": "the node <x> is gone"}
    search = read_search(str(write_search(tmp_path / "s", [*first, lost, *second])), "s")
    assert search.trials[0].attempts == [Attempt(0.0, 30.0, 0, "the node <x> is gone"), Attempt(100.0, 121.0, 0)]
    assert search.trials[0].outcome == "finished"
    assert search.trials[0].seconds == 51.0
    winner, gone = timeline(search).data
    assert (winner.base, winner.x) == ((30.0,), (21.0,))  # more than a minute in which nothing ran is left out
    assert (gone.base, gone.x) == ((0.0,), (30.0,))
    assert gone.customdata[0].endswith("attempt 1 of 2, 30 s<br>lost: the node &lt;x&gt; is gone")


def test_points_of_the_front_say_which_trials_they_are(tmp_path: Path) -> None:
    changes = SPACE | {"search.objectives": "[f1 max, parameters min]"}
    search = read_search(str(write_search(tmp_path / "two", realistic(), changes)), "two")
    told = {
        text.splitlines()[0]: (x, y) for trace in pareto_front(search).data[:2]
        for text, x, y in zip(trace.text, trace.x, trace.y, strict=True)
    }  # fmt: skip
    rated = [one for one in search.trials if one.outcome != "failed" and one.f1]
    assert len(told) == len(rated)
    for one in rated:
        text = next(text for text in told if f"({one.trial_id})" in text)
        assert told[text] == (one.f1, one.metrics["parameters"])
        assert text.endswith(f"parameters: {one.metrics['parameters']:,.0f}")


def test_pictures_say_what_they_miss(tmp_path: Path) -> None:
    search = read_search(str(write_search(tmp_path / "s", [])), "s")
    for _, _, draw in PICTURES:
        with pytest.raises(NothingToDraw):
            draw(search)


class FakeClient:
    """The parts of MlflowClient that a report uses."""

    def __init__(self, **tags: str) -> None:
        self.tags: dict[str, dict[str, str]] = {"parent": tags}
        self.texts: dict[tuple[str, str], str] = {}

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(
            info=SimpleNamespace(experiment_id="7"), data=SimpleNamespace(tags=dict(self.tags[run_id]))
        )

    def search_runs(self, experiment_ids: list[str], filter_string: str) -> list[Any]:
        """The runs that are marked as winners, which is all that a report asks for."""
        assert BEST in filter_string
        marked = [run_id for run_id, tags in self.tags.items() if tags.get(BEST) == "true"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run_id)) for run_id in marked]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags.setdefault(run_id, {})[key] = value

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.texts[run_id, name] = text


def test_parent_run_tells_a_stranger_who_won(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "s", trial("a", [0.7, 0.8123]) + trial("b", [0.4], 1.0, "stopped_early"))
    search = write(str(folder), "s", {"a": "run-a", "b": "run-b"})
    client = FakeClient(**{names.TEST_DIGEST: "f" * 64})
    publish(client, "parent", str(folder), search)  # type: ignore[arg-type]
    note = client.tags["parent"][NOTE]
    assert note.startswith("**Winner: run [run-a](#/experiments/7/runs/run-a), validation F1 0.8123**")
    for part in (
        "`training.learning_rate` 0.0001, `training.schedule` linear",
        "2 (1 finished, 1 stopped early)",
        "`python -m gate check --run-id run-a`",
        "`python -m ray_jobs.search --from-run parent`",
        f"`{folder}/report.html`",
        "settings.json",
        "ffffffffffff",
    ):
        assert part in note, part
    assert client.tags["run-a"][BEST] == "true"
    assert "run-b" not in client.tags
    assert client.texts["parent", "report.html"] == (folder / "report.html").read_text(encoding="utf-8")


def test_a_search_that_went_on_has_one_winner(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "s", trial("a", [0.7]) + trial("b", [0.9], 1.0))
    client = FakeClient()
    client.set_tag("run-a", BEST, "true")
    search = write(str(folder), "s", {"a": "run-a", "b": "run-b"})
    publish(client, "parent", str(folder), search)  # type: ignore[arg-type]
    assert (client.tags["run-a"][BEST], client.tags["run-b"][BEST]) == ("false", "true")


def test_description_without_a_winner_has_the_first_error(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "s", trial("a", [], outcome="failed", error="OutOfMemoryError: 3 GB"))
    text = description(read_search(str(folder), "s"), "parent", "7", {}, "r")
    assert text.startswith("**No winner**: none of the 1 trials gave a model.")
    assert "    OutOfMemoryError: 3 GB" in text
    assert "gate" not in text


def _tracker(folder: Path, client: Any) -> Any:
    journal = SimpleNamespace(location=f"{folder}/journal.jsonl")
    return SimpleNamespace(journal=journal, trials={}, client=client, parent_run_id="parent")


def test_a_report_that_fails_never_fails_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(FakeClient):
        def log_text(self, run_id: str, text: str, name: str) -> None:
            raise PermissionError("read only")

    nowhere = _tracker(tmp_path / "nowhere", FakeClient())
    to_mlflow(nowhere, leave(nowhere, "s"))
    assert "the report could not be made: ConfigError: there is no search in" in capsys.readouterr().err
    refused = _tracker(write_search(tmp_path / "s", trial("a", [0.7])), Refusing())
    to_mlflow(refused, leave(refused, "s"))
    assert "could not be put on the search's run: PermissionError: read only" in capsys.readouterr().err


class Gone(FakeClient):
    """MLflow that cannot be reached."""

    def get_run(self, run_id: str) -> Any:
        raise names.TrackingUnavailable("gone")


def test_mlflow_out_of_reach_is_the_searchs_business(tmp_path: Path) -> None:
    tracker = _tracker(write_search(tmp_path / "s", trial("a", [0.7])), Gone())
    with pytest.raises(names.TrackingUnavailable):
        to_mlflow(tracker, leave(tracker, "s"))


class Unheard(Tracker):
    """A tracker whose events MLflow never took."""

    def close(self, stalled_s: float, at_most_s: float = 0.0) -> None:
        raise names.TrackingUnavailable("MLflow does not have all results")


@pytest.mark.parametrize("how", ["finished", "aborted"])
def test_the_page_is_there_also_when_mlflow_is_down_at_the_end(how: str, tmp_path: Path) -> None:
    folder = write_search(tmp_path / "s", trial("a", [0.7]))
    tracker = Unheard(Gone(), "7", Journal(f"{folder}/journal.jsonl"), "parent")  # type: ignore[arg-type]
    if how == "finished":
        with pytest.raises(names.TrackingUnavailable, match="--resume s"):
            finish(tracker, "s", Settings())
    else:
        abort(tracker, "s", SearchConfig(), "KILLED")
    assert "Trial 1 has the best validation F1" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_command_draws_it_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "searches"
    folder = write_search(storage / "s", trial("a", [0.7]))
    home = [f"--set=home={tmp_path}"]
    assert main(["--search", "s", *home]) == 0
    assert capsys.readouterr().out.strip() == f"{folder}/report.html"
    assert main(["--search", f"{folder}/journal.jsonl", *home]) == 0
    assert main(["--search", "other", *home]) == 2
    assert "there is no search in" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read_search(str(tmp_path), "x")
    assert load_settings(None, [f"home={tmp_path}"]).search.storage == str(storage)
