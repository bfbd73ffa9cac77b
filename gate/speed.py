"""How long models take for one text, with the engine that serves them, and how large they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gate.evaluation import Speed
from serve_app.inference.engine import Engine
from serve_app.inference.saved_model import parameter_count

TEXTS: Final = 32
ROUNDS: Final = 5  # where a limit is set
ROUNDS_TO_INFORM: Final = 2  # the first one warms up


def measure_speed(models: Sequence[tuple[Engine, Path]], texts: Sequence[str], rounds: int = ROUNDS) -> list[Speed]:
    """The speed of each model (with its folder) on the same sample of ``texts``, each at its best of ``rounds``.

    They take turns text by text, so whatever else the machine does slows all of them alike.
    """
    sample = [texts[int(place)] for place in np.linspace(0, len(texts) - 1, min(TEXTS, len(texts)))]
    milliseconds = np.full((len(models), len(sample)), np.inf)
    for _ in range(rounds):
        for column, text in enumerate(sample):
            for row, (engine, _) in enumerate(models):
                start = time.perf_counter()
                engine.predict([text])
                milliseconds[row, column] = min(milliseconds[row, column], 1000 * (time.perf_counter() - start))
    return [
        Speed(
            latency_ms=float(np.median(found)),
            latency_p95_ms=float(np.percentile(found, 95)),
            texts=len(sample),
            rounds=rounds,
            bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            parameters=parameter_count(folder),
        )
        for found, (_, folder) in zip(milliseconds, models, strict=True)
    ]
