"""Whole searches by the samplers and objectives that are not the default, and one that is repeated by its run."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from ray_jobs.journal import Journal
from ray_jobs.search import main, run_search
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings

# One after the other: a sampler models what it has heard of.
ONE_BY_ONE = {
    "search__max_concurrent": "1",
    "search__startup_trials": "1",
    "search__scheduler": "none",
    "training__epochs": "1",
}


@pytest.mark.slow
def test_gp_with_latency(
    ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path, studies: list[optuna.Study]
) -> None:
    objectives = {"search__objectives": "[f1 max, latency min]", "search__max_f1_drop": "1.0"}
    settings = small_settings(tmp_path / "home", tracking_uri, search__sampler="gp", **ONE_BY_ONE, **objectives)
    result = run_search(settings)
    assert result.counts() == {"finished": 3, "stopped_early": 0, "failed": 0}
    (study,) = studies
    assert study.sampler._gprs_cache_list is not None, "all were drawn at random"  # type: ignore[attr-defined]
    told = sorted(tuple(trial.values) for trial in study.trials)
    assert told == sorted((trial.f1, trial.metrics["latency_ms"]) for trial in result.trials)
    assert result.best.metrics["latency_ms"] == min(latency for _, latency in told) > 0
    assert result.front is not None
    assert f"to the gate: trial {result.best.trial_id}: latency" in result.front


@pytest.mark.slow
def test_cmaes_repeated_by_its_run(
    ray_cluster: RayCluster,
    tracking_uri: str,
    tmp_path: Path,
    studies: list[optuna.Study],
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    settings = small_settings(home, tracking_uri, search__sampler="cmaes", search__name="first", **ONE_BY_ONE)
    result = run_search(settings)
    assert result.counts() == {"finished": 3, "stopped_early": 0, "failed": 0}
    assert any(key.startswith("cma:") for key in studies[0].trials[1].system_attrs), "all were drawn at random"

    places = [f"home={home}", f"tracking.uri={tracking_uri}", "search.name=second"]
    sets = [part for place in places for part in ("--set", place)]
    capsys.readouterr()
    assert main(["--from-run", result.parent_run_id, *sets, "--json"]) == 0
    shown = capsys.readouterr()
    assert "the result will differ" not in shown.err
    assert json.loads(shown.out)["repeats"] == result.parent_run_id
    runs = []
    for name in ("first", "second"):
        events = Journal(f"{settings.search.storage}/{name}/journal.jsonl").events
        runs.append([
            event.get("parameters") or event["metrics"]["validation_f1"]
            for event in events if event["event"] in ("started", "epoch")
        ])  # fmt: skip
    assert runs[0] == runs[1]
    assert len(runs[0]) == 6
    assert len({json.dumps(each) for each in runs[0][::2]}) == 3, "three different points"
