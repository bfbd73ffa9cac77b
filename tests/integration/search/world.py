"""A search that is real in every part and small enough for a test."""

from __future__ import annotations

from pathlib import Path

from configs.loading import load_settings
from configs.schema import Settings

SMALL = {
    "data.generator": "{texts: 240, test_texts: 80}",
    "model.architecture": "{layers: 1, width: 16, heads: 2, vocabulary_size: 600}",
    "model.max_length": "48",
    "training.epochs": "2",
    "training.precision": "fp32",
    "search.trials": "3",
    "search.max_concurrent": "3",
    "search.space.training.learning_rate": "{type: loguniform, low: 1.0e-3, high: 1.0e-2}",
    "search.space.model.dropout": "{type: uniform, low: 0.0, high: 0.2}",
    "gate.minimum_f1": "0.2",
}


def small_settings(home: Path, tracking_uri: str | None = None, **changes: str) -> Settings:
    """Settings of a small search under ``home``; ``changes`` use ``__`` for the dot of a setting's name."""
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    values["home"] = str(home)
    if tracking_uri is not None:
        values["tracking.uri"] = tracking_uri
    return load_settings(None, arguments(values))


def arguments(values: dict[str, str]) -> list[str]:
    """``key=value`` texts, as ``--set`` takes them."""
    return [f"{key}={value}" for key, value in values.items()]
