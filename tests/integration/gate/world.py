"""What a search leaves in MLflow, made without one: dataset run, parent run, trial runs with tiny real models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient

from configs.schema import Settings
from gate import attachments, score_store
from ray_jobs.data.freeze import write_test_parquet
from ray_jobs.data.prepare import Split
from ray_jobs.parent_run import without_credentials
from serve_app import mlflow_client as names
from serve_app.inference.digests import content_id, split_digest
from serve_app.mlflow_client import ensure_experiment

LABELS = ("negative", "positive")
TEXTS = [f"the {what} was {how} and {again}" for what in ("movie", "plot", "cast", "story", "ending", "acting")
         for how in ("good", "bad", "great", "fine") for again in ("long", "short", "not fine")]  # fmt: skip
PICTURES = [
    (score_store, "confusion_figure"),
    (score_store, "precision_recall_figure"),
    (score_store, "reliability_figure"),
    (attachments, "comparison_figure"),
]  # who draws them, and with what


def empty_picture(*_: object) -> Figure:
    """In place of each of PICTURES, whose drawing is a third of a promotion's time."""
    return Figure(figsize=(1, 1))


@dataclass
class World:
    """One experiment with one search."""

    client: MlflowClient
    uri: str
    folder: Path
    experiment_id: str
    settings: Settings
    parent: str
    test_digest: str
    test_uri: str

    def trial(self, model: Path | str | None, **tags: str) -> str:
        """A trial's run whose saved model is the folder ``model``; returns its id."""
        own = {
            names.KIND: names.KIND_TRIAL,
            names.PARENT_RUN: self.parent,
            names.TEST_DIGEST: self.test_digest,
            names.TEST_URI: self.test_uri,
            **({names.MODEL_URI: str(model)} if model is not None else {}),
            **tags,
        }
        run = self.client.create_run(self.experiment_id, tags=own)
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return run.info.run_id

    def set_gate(self, **values: object) -> None:
        """Changes the gate's settings that the search was begun with."""
        gate = self.settings.gate.model_dump() | values
        self.settings = Settings.model_validate(self.settings.model_dump() | {"gate": gate})
        self.client.log_text(self.parent, json.dumps(without_credentials(self.settings)), names.SETTINGS_FILE)

    def freeze(
        self, texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str] = LABELS
    ) -> tuple[str, str]:
        """A dataset run with a frozen split; returns digest and URI."""
        ids = [content_id(text) for text in texts]
        digest = split_digest(ids, texts, labels, label_names)
        path = self.folder / digest[:8] / names.TEST_FILE
        write_test_parquet(Split(list(ids), list(texts), np.asarray(labels), digest), label_names, path)
        tags = {names.KIND: names.KIND_DATASET, names.TEST_DIGEST: digest}
        run_id = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)
        return digest, f"runs:/{run_id}/{names.TEST_FILE}"


def make_world(client: MlflowClient, uri: str, folder: Path) -> World:
    """A search without trials, whose test split says "positive" exactly for the texts with "good" in them.

    Its gate has no behavioural tests, which take time and say nothing of most of what is tested here.
    """
    settings = Settings.model_validate({"tracking": {"uri": uri}, "serving": {"precision": "fp32"}})
    experiment = ensure_experiment(client, settings.tracking.experiment)
    world = World(client, uri, folder, experiment, settings, "", "", "")
    world.test_digest, world.test_uri = world.freeze(TEXTS, [int("good" in text) for text in TEXTS])
    tags = {names.KIND: names.KIND_SEARCH, names.TEST_DIGEST: world.test_digest, names.TEST_URI: world.test_uri}
    world.parent = client.create_run(experiment, tags=tags).info.run_id
    world.set_gate(minimum_f1=0.85, behaviour_suites=[])
    return world
