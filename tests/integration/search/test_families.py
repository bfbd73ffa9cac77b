"""Families beside DistilBERT go the whole way: searched, compared on one test split, promoted, and served."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from gate import promotion
from ray_jobs.baselines import run_baselines, table
from serve_app import mlflow_client as names
from serve_app.inference.engine import Engine
from serve_app.model_source import find_model_folder
from tests.conftest import RayCluster
from tests.integration.search.world import small_settings


@pytest.mark.timeout(180)
def test_baselines_are_compared_and_one_is_promoted(ray_cluster: RayCluster, tracking_uri: str, tmp_path: Path) -> None:
    settings = small_settings(
        tmp_path / "home",
        tracking_uri,
        training__epochs="1",
        search__trials="1",
        baselines__cnet="""{
            model: {family: cnet, cnet: {width: 16, vocabulary_size: 600}},
            search: {space: {model.cnet.filters: {type: int, low: 8, high: 16}}}}""",
        baselines__rnn="""{
            model: {family: rnn, rnn: {width: 16, hidden_width: 8, vocabulary_size: 600}},
            data: {max_train_texts: 100}}""",
    )
    cnet, rnn = run_baselines(settings)
    assert [row.family for row in (cnet, rnn)] == ["cnet", "rnn"]
    assert cnet.test_digest == rnn.test_digest
    assert (cnet.train_texts, rnn.train_texts) == (216, 100)
    # embeddings, then four LSTM gates in both directions with two biases each, then the classifier
    vocabulary = (rnn.parameters - 2 * 4 * 8 * (16 + 8 + 2) - (16 * 2 + 2)) / 16
    assert vocabulary == int(vocabulary) <= 600
    assert len(table([cnet, rnn]).splitlines()) == 4

    client = names.connect(settings.tracking)
    assert not client.search_registered_models()
    assert client.get_run(cnet.run_id).data.metrics["test_f1"] == cnet.test_f1
    decision = promotion.promote(client, settings, run_id=cnet.run_id)
    assert (decision.decision, decision.f1) == ("promoted", cnet.test_f1)
    version = f"models:/{settings.tracking.model_name}/1"
    folder = find_model_folder(Path(mlflow.artifacts.download_artifacts(version, dst_path=str(tmp_path / "version"))))
    config = json.loads((folder / "config.json").read_text())
    assert (config["family"], config["filters"]) == ("cnet", cnet.hyperparameters["model.cnet.filters"])
    assert Engine.load(folder).predict(["not good at all"]).shape == (1, 2)
