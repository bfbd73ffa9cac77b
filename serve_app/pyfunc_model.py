"""Lets a registered version open with ``mlflow.pyfunc.load_model``: texts in, labels and probabilities out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from serve_app.inference.engine import Engine


class TextClassifier:
    """What ``mlflow.pyfunc.load_model("models:/NAME@production")`` wraps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per text: ``label``, ``score`` (its probability) and ``probabilities`` (class name to probability).

        ``model_input``: a list or Series of texts, or a DataFrame with a column ``text``. Too long texts are cut.
        ``params`` are MLflow's and not used. Raises ValueError for anything else than texts.
        """
        texts = _texts(model_input)
        labels = list(self.engine.labels)
        probabilities = self.engine.predict(texts) if texts else np.empty((0, len(labels)), dtype=np.float32)
        best = probabilities.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": [labels[i] for i in best],
                "score": probabilities[np.arange(len(texts)), best].astype(np.float64),
                "probabilities": [dict(zip(labels, map(float, row), strict=True)) for row in probabilities],
            },
            index=model_input.index if isinstance(model_input, pd.DataFrame | pd.Series) else None,
        )


def _texts(model_input: Any) -> list[str]:
    if isinstance(model_input, pd.DataFrame):
        columns = list(model_input.columns)
        if "text" not in columns and len(columns) != 1:
            raise ValueError(f"the input needs a column 'text', found {list(map(str, columns))}")
        model_input = model_input["text" if "text" in columns else columns[0]]
    texts = [model_input] if isinstance(model_input, str) else list(model_input)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {place} is {type(text).__name__}, expected str")
    return texts


def _load_pyfunc(path: str) -> TextClassifier:
    """MLflow's entry point; ``path`` is the saved-model folder."""
    return TextClassifier(Engine.load(path))
