"""Data-parallel trials: two workers under Ray Train take the steps that one takes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
