"""The table that search efficiency is replayed on: the validation F1 of every epoch at every point of a grid.

    python -m tests.benchmarks.search_table [--seconds N]

A small DistilBERT on built-in texts, trained by ``ray_jobs.training.Trainer`` without Ray, one process per core. Rows
are appended as they are done, so a run that is stopped (``--seconds``: starts no further point after that long) goes on
where it was.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from configs.schema import Settings
from ray_jobs.data.prepare import prepare
from ray_jobs.tokens import tokenise
from ray_jobs.trial import SearchData

TABLE = Path(__file__).with_name("search_table.csv")
EPOCHS = 6
SETTINGS = Settings.model_validate(
    {
        # More texts validate than train: F1 must differ by the settings more than by which texts were drawn.
        "data": {"generator": {"texts": 8000, "test_texts": 10}, "validation_fraction": 0.5, "max_train_texts": 1600},
        "model": {
            "architecture": {"layers": 1, "width": 48, "heads": 4, "vocabulary_size": 1500},
            "max_length": 48,
            "attention_dropout": 0.0,
        },
        "training": {"epochs": EPOCHS, "precision": "fp32"},
    }
)
GRID: dict[str, list[float]] = {
    "training.learning_rate": [1e-4, 2.5e-4, 6e-4, 1.5e-3, 4e-3, 1e-2],
    "training.batch_size": [16, 32, 64],
    "training.warmup_ratio": [0.0, 0.1, 0.2, 0.4],
    "model.dropout": [0.0, 0.15, 0.3],
}

Point = tuple[float, ...]


def read_table(path: Path = TABLE) -> dict[Point, list[float]]:
    """Point of the grid -> validation F1 after each epoch. A row cut off by a kill is left out."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    width = len(GRID)
    return {tuple(map(float, row[:width])): list(map(float, row[width:])) for row in rows if len(row) == width + EPOCHS}


def write_rows(rows: list[list[Any]]) -> None:
    """Replaces the table."""
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(TABLE)


def learning_curve(point: Point, data: SearchData) -> list[float]:
    """Trains at ``point``; returns the validation F1 after each epoch, rounded to what the split can tell."""
    import torch

    from ray_jobs.training import Trainer
    from ray_jobs.trial import build_model
    from serve_app.inference.metrics import F1Definition

    torch.set_num_threads(1)
    settings = SETTINGS.with_parameters(parameters(point))
    model = build_model(settings, data)
    f1 = F1Definition.from_key(data.f1_key)
    trainer = Trainer(model, data.train, data.validation, settings.training, label_names=data.label_names, f1=f1)
    return [round(report.validation_f1, 5) for report in trainer.run()]


def parameters(point: Point) -> dict[str, float]:
    """The settings that ``point`` means."""
    whole = {"training.batch_size"}
    return {key: int(value) if key in whole else value for key, value in zip(GRID, point, strict=True)}


def main() -> None:
    """Computes what the table lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further point after this long")
    started, seconds = time.monotonic(), parser.parse_args().seconds
    done = read_table()
    missing = [point for point in itertools.product(*GRID.values()) if tuple(map(float, point)) not in done]
    data = tokenise(SETTINGS, prepare(SETTINGS.data))
    header = [*GRID, *(f"f1_{epoch}" for epoch in range(1, EPOCHS + 1))]
    write_rows([header, *([*parameters(point).values(), *curve] for point, curve in done.items())])
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool, TABLE.open("a", encoding="utf-8") as file:
        curves = pool.imap(functools.partial(learning_curve, data=data), missing)
        for place, (point, curve) in enumerate(zip(missing, curves, strict=True), start=len(done) + 1):
            file.write(",".join(map(str, [*parameters(point).values(), *curve])) + "\n")
            file.flush()
            print(f"{place} of {len(done) + len(missing)}: {point} -> {max(curve):.4f}", flush=True)
            if time.monotonic() - started > seconds:
                break


if __name__ == "__main__":
    main()
