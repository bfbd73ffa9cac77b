"""The parts of a search that need neither Ray nor MLflow: capacity, the journal, the records, the table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from configs.loading import ConfigError
from configs.model import TrainingConfig
from configs.schema import Settings
from configs.search import SearchConfig
from ray_jobs.baselines import run_baselines
from ray_jobs.cluster import concurrent_trials
from ray_jobs.journal import Journal, read_lines
from ray_jobs.progress import failure_message, summary_table
from ray_jobs.tokens import check_warmup
from ray_jobs.tracking import TrialRecord

CPU_NODE = {"CPU": 4.0}
GPU_NODE = {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        ({}, [CPU_NODE], 4),
        ({}, [CPU_NODE, CPU_NODE], 8),
        ({"cpus_per_trial": 3}, [CPU_NODE, CPU_NODE], 2),
        ({"max_concurrent": 2}, [CPU_NODE], 2),
        ({"max_concurrent": 9}, [CPU_NODE], 4),
        ({"trials": 3}, [CPU_NODE], 3),
        ({"gpus_per_trial": 1}, [CPU_NODE, GPU_NODE], 2),
        ({"gpus_per_trial": 0.25}, [GPU_NODE], 8),
        ({"gpus_per_trial": 0.4}, [GPU_NODE], 4),
        ({"gpus_per_trial": 4, "cpus_per_trial": 4}, [GPU_NODE, GPU_NODE], 1),
        ({"workers_per_trial": 2, "cpus_per_trial": 8}, [CPU_NODE, CPU_NODE], 1),
        ({}, [{"CPU": 0.0}, CPU_NODE], 4),
    ],
)
def test_concurrency_is_what_the_nodes_hold(
    changes: dict[str, float], nodes: list[dict[str, float]], expected: int
) -> None:
    assert concurrent_trials(SearchConfig.model_validate({"trials": 50, **changes}), nodes) == expected


@pytest.mark.parametrize("changes", [{"gpus_per_trial": 3}, {"cpus_per_trial": 32}, {"gpus_per_trial": 0.5}])
def test_a_trial_that_fits_nowhere_is_refused_with_the_arithmetic(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"room for \d+ such worker.*4 CPUs and 0 GPUs"):
        concurrent_trials(SearchConfig.model_validate(changes), [CPU_NODE])


def test_journal_survives_a_writer_that_was_killed_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "search" / "journal.jsonl"
    journal = Journal(str(path))
    journal.append({"event": "started", "trial": "a"})
    with path.open("a") as file:
        file.write('{"event": "epo')
    again = Journal(str(path))
    assert again.events == [{"event": "started", "trial": "a"}]
    again.append({"event": "ended", "trial": "a"})
    assert [event["event"] for event in Journal(str(path)).events] == ["started", "ended"]
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["started", "ended"]


def test_journal_in_an_object_store() -> None:
    journal = Journal("memory://trialgate-test/journal.jsonl")
    journal.append({"event": "started"})
    journal.append({"event": "ended"})
    assert Journal("memory://trialgate-test/journal.jsonl").events == [{"event": "started"}, {"event": "ended"}]


def test_an_event_in_an_object_store_costs_the_same_however_long_the_journal_is() -> None:
    location = "memory://trialgate-long/journal.jsonl"
    events = [{"event": "epoch", "number": number, "padding": "x" * 1000} for number in range(700)]
    journal = Journal(location)
    for number, event in enumerate(events):
        journal.append(event)
        if number % 90 == 0:
            journal = Journal(location)  # as in a search that goes on
    assert Journal(location).events == [json.loads(line) for line in read_lines(location)] == events
    store = fsspec.filesystem("memory")
    sizes = [entry["size"] for entry in store.ls("/trialgate-long")]
    assert len(sizes) > 1
    assert max(sizes) < 300_000


def test_table_has_a_row_per_trial() -> None:
    trials = [
        TrialRecord("good", {"training.learning_rate": 1e-3}, 0.0, "finished", 0.91234, 2, 3, 12.3),
        TrialRecord("bad", {"training.learning_rate": 1.0}, 0.0, "failed"),
    ]
    lines = summary_table(trials).splitlines()
    assert lines[0].split() == ["trial", "best", "F1", "epoch", "epochs", "seconds", "outcome", "learning_rate"]
    assert lines[2].split() == ["1", "good", "0.9123", "2", "3", "12", "finished", "0.001"]
    assert lines[3].split() == ["2", "bad", "-", "-", "0", "0", "failed", "1"]


TRAIN_SAYS = "  File x\nray.train.WorkerGroupError: Training failed due to worker errors:\n[Rank 0 Error Snippet]:\n"
NO_MEMORY = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 3GB used / 3GB limit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TRAIN_SAYS}Traceback:\n  File y\nmine.DivergedError: epoch 1: nan\n", "mine.DivergedError: epoch 1: nan"),
        (f"{TRAIN_SAYS}A worker health check failed.\nThe actor is dead: killed\n", "The actor is dead: killed"),
        (f"{TRAIN_SAYS}{NO_MEMORY}\nTop 10 memory users: PID\nRefer to the documentation\n", NO_MEMORY),
        ("", "no message"),
    ],
)
def test_failure_message_is_the_error_itself(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text(text)
    trial = SimpleNamespace(get_error=lambda: None, error_file=str(file))
    assert failure_message(trial) == message  # type: ignore[arg-type]


def test_warmup_longer_than_training_is_refused() -> None:
    check_warmup(TrainingConfig(epochs=2, batch_size=10, warmup_steps=20), 100)
    with pytest.raises(ConfigError, match=r"warmup_steps 21 is longer than training.* are 20 steps"):
        check_warmup(TrainingConfig(epochs=2, batch_size=10, warmup_steps=21), 100)


def test_baselines_without_any_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no baselines.*baselines\.yaml"):
        run_baselines(Settings())
