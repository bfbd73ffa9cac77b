"""What a trial holds: two workers under Ray Train take the steps that one takes, and two trials share a core."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_jobs.journal import Journal
from ray_jobs.search import run_search
from serve_app.inference.engine import Engine
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


@pytest.mark.slow
def test_one_and_two_workers_have_the_same_losses(ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path) -> None:
    found = []
    for workers in ("1", "2"):
        settings = small_settings(
            tmp_path / "home",
            tracking_uri,
            search__name=f"workers-{workers}",
            search__trials="1",
            search__workers_per_trial=workers,
            search__cpus_per_trial=workers,
            search__space__training__learning_rate="{type: choice, values: [0.003]}",
            search__space__model__dropout="{type: choice, values: [0.0]}",
            model__attention_dropout="0",
            model__classifier_dropout="0",
        )
        best = run_search(settings).best
        assert best.model_uri is not None
        assert Engine.load(best.model_uri).labels == ("negative", "positive")
        found.append([best.metrics[key] for key in ("train_loss", "validation_loss", "best_validation_f1")])
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_two_trials_share_a_core(ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path) -> None:
    settings = small_settings(
        tmp_path / "home",
        tracking_uri,
        search__name="halves",
        search__trials="2",
        search__cpus_per_trial="0.5",
        search__scheduler="none",
    )
    others = placement_group([{"CPU": ray.available_resources()["CPU"] - 1}])
    try:
        assert others.wait(30)
        result = run_search(settings)
    finally:
        remove_placement_group(others)
    assert result.counts() == {"finished": 2, "stopped_early": 0, "failed": 0}
    events = Journal(f"{settings.search.storage}/halves/journal.jsonl").events
    order = [event["event"] for event in events if event["event"] in ("started", "ended")]
    assert order == ["started", "started", "ended", "ended"]
    threads = {event["metrics"]["processor"].rpartition(", ")[2] for event in events if event["event"] == "epoch"}
    assert threads == {"1 threads"}
