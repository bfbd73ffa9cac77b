"""Journals of searches that never ran: what the report has to show, without Ray."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.loading import load_settings

SPACE = {
    "search.space.training.learning_rate": "{type: loguniform, low: 1.0e-5, high: 1.0e-3}",
    "search.space.model.dropout": "{type: uniform, low: 0.0, high: 0.3}",
    "search.space.training.batch_size": "{type: int, low: 8, high: 64}",
    "search.space.training.schedule": "{type: choice, values: [linear, cosine, constant]}",
}


def epoch(
    time: float, trial: str, number: int, f1: float, best: tuple[float, int], seconds: float, **more: float
) -> dict[str, Any]:
    """The event of one reported epoch; ``best``: F1 and epoch of the best until then; ``more``: further metrics."""
    metrics = {
        "epoch": number,
        "validation_f1": f1,
        "best_validation_f1": best[0],
        "best_epoch": best[1],
        "seconds": seconds,
        "model_uri": f"/models/{trial}/epoch-{best[1]}",
    }
    return {"time": time, "event": "epoch", "trial": trial, "metrics": metrics | more}


def realistic(trials: int = 24, slots: int = 4, epochs: int = 6, seed: int = 3) -> Iterator[dict[str, Any]]:
    """Events of a search with ASHA's stops, two failed trials, one killed and one that lost a node: oldest first."""
    draw = random.Random(seed)
    events, free_from = [], [1_790_000_000.0 + 3 * slot for slot in range(slots)]
    reached: dict[int, list[float]] = {}
    for number in range(trials):
        trial = f"{draw.getrandbits(32):08x}"
        parameters = {
            "training.learning_rate": 10 ** draw.uniform(-5, -3),
            "model.dropout": draw.uniform(0, 0.3),
            "training.batch_size": draw.randint(8, 64),
            "training.schedule": draw.choice(["linear", "cosine", "constant"]),
        }
        distance = abs(math.log10(parameters["training.learning_rate"]) + 3.6)  # type: ignore[arg-type]
        top = 0.925 - 0.09 * distance**1.5 - 0.15 * parameters["model.dropout"] ** 2 + draw.gauss(0, 0.004)  # type: ignore[operator]
        slot = min(range(slots), key=free_from.__getitem__)
        time, pace = free_from[slot], draw.uniform(32, 48)
        events.append({"time": time, "event": "started", "trial": trial, "parameters": parameters})
        time += draw.uniform(6, 11)
        outcome, error, best = "finished", None, (-1.0, 0)
        for step in range(1, epochs + 1):
            time += pace * draw.uniform(0.93, 1.07)
            if number in (6, 15) and step == 2:
                outcome, error = "failed", "TrainingDivergedError: epoch 2: training loss nan, validation loss nan"
                break
            f1 = top - (top - 0.55) * math.exp(-1.1 * step) + draw.gauss(0, 0.003)
            best = (f1, step) if f1 > best[0] else best
            if number == 7 and step == 4:
                lost = "WorkerHealthCheckTimeoutError: the node of rank 0 is gone"
                events.append({"time": time - pace / 2, "event": "attempt_failed", "trial": trial, "error": lost})
                time += 12 + pace / 2
                again = time - pace
                events.append({"time": again, "event": "started", "trial": trial, "parameters": parameters})
            events.append(epoch(time, trial, step, f1, best, pace, parameters=1e5 * parameters["training.batch_size"]))  # type: ignore[operator]
            if number == trials - 2 and step == 1:
                outcome = "killed"
                break
            if step in (1, 3):
                rung = reached.setdefault(step, [])
                rung.append(f1)
                if number not in (6, 15) and len(rung) >= 3 and f1 < sorted(rung)[-math.ceil(len(rung) / 2)]:
                    outcome = "stopped_early"
                    break
        time += 1.5
        events.append({"time": time, "event": "ended", "trial": trial, "outcome": outcome, "error": error})
        free_from[slot] = time + draw.uniform(2, 4)
    yield from sorted(events, key=lambda event: event["time"])  # type: ignore[arg-type, return-value]


def write_search(folder: Path, events: Iterable[dict[str, Any]], space: dict[str, str] = SPACE) -> Path:
    """A search's storage folder with journal and settings."""
    folder.mkdir(parents=True)
    values = {"training.epochs": "6"} | space
    settings = load_settings(None, [f"{key}={value}" for key, value in values.items()])
    (folder / "settings.json").write_text(settings.model_dump_json())
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
