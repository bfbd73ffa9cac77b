"""What --dry-run tells of a search, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from ray_jobs import pipeline, search
from ray_jobs.journal import Journal
from ray_jobs.search import prepare_storage
from ray_jobs.warm_start import EarlierTrials
from serve_app import mlflow_client as names
from tests.conftest import RAY_CPUS, RayCluster
from tests.integration.search.world import SMALL, arguments, small_settings


def dry(home: Path, *more: str, **changes: str) -> list[str]:
    values = SMALL | {"home": str(home)} | {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config", "quickstart.yaml", "--dry-run", *(f"--set={text}" for text in arguments(values)), *more]


def test_the_plan_has_the_numbers_and_nothing_is_written(
    ray_cluster: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    changes = {"search__trials": "5", "search__space.training.epochs": "{type: int, low: 1, high: 4}"}
    assert search.main(dry(home, "--json", **changes)) == ExitCode.OK
    found = json.loads(capfd.readouterr().out)
    assert (found["trials"], found["concurrent_trials"], found["epochs"]) == (5, 3, 20)
    classes = found["data"]["classes"]["train"]
    assert found["tokens"] > 20 * sum(classes.values()) > 0
    assert found["disk_bytes"] > 4 * found["parameters"] > 0
    assert not home.exists()


def test_the_pipeline_tells_it_to_people(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main(dry(tmp_path / "home", tracking__uri=tracking_uri)) == ExitCode.OK
    told = capsys.readouterr().out
    assert "3 trials" in told
    assert f"room for {RAY_CPUS} such worker(s): its nodes have {RAY_CPUS} CPUs and 0 GPUs" in told
    assert "or 0.2 while there is none" in told
    client = names.connect(small_settings(tmp_path / "home", tracking_uri).tracking)
    assert client.get_experiment_by_name("quickstart") is None
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"search__gpus_per_trial": "9"}, ExitCode.USAGE, "room for 0 such worker"),
        ({"search__warm_start": "{experiment: x}"}, ExitCode.USAGE, "no trial to learn from"),
        ({"tracking__uri": "http://127.0.0.1:9"}, ExitCode.UNREACHABLE, "http://127.0.0.1:9"),
        ({"search__storage": "/dev/null/searches"}, ExitCode.UNREACHABLE, "/dev/null is no folder"),
    ],
)
def test_what_the_search_would_refuse_is_refused(
    ray_cluster: RayCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    code: ExitCode,
    message: str,
) -> None:
    assert search.main(dry(tmp_path / "home", **changes)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_cluster_that_has_to_grow_is_said(
    ray_cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"search__gpus_per_trial": "9", "search__cluster_wait_s": "600", "search__max_concurrent": "2"}
    assert search.main(dry(tmp_path / "home", **changes)) == ExitCode.OK
    assert "at a time: 2, once the cluster has grown, for which it waits up to 600 s" in capsys.readouterr().out


def test_a_search_that_goes_on_has_fewer_trials(
    ray_cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(tmp_path / "home", tracking__experiment="quickstart")
    folder = f"{settings.search.storage}/s"
    prepare_storage(folder, settings, EarlierTrials())
    journal = Journal(f"{folder}/journal.jsonl")
    for trial, outcome in (("a", "finished"), ("b", "killed")):
        journal.append({"time": 1.0, "event": "started", "trial": trial, "parameters": {}})
        journal.append({"time": 2.0, "event": "ended", "trial": trial, "outcome": outcome, "error": None})
    before = Path(journal.location).read_bytes()
    values = settings.model_dump(mode="json")
    config = tmp_path / "same.json"
    config.write_text(json.dumps(values))
    assert search.main(["--config", str(config), "--dry-run", "--resume", "s"]) == ExitCode.OK
    assert "search s: 2 trials beside the 1 that are over" in capsys.readouterr().out
    assert Path(journal.location).read_bytes() == before
