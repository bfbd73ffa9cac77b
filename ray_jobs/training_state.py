"""What an interrupted training run goes on from, in a folder: safetensors for numbers, JSON for what was reported."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from ray_jobs.training import EpochReport, Trainer

_TENSORS = "state.safetensors"
_REPORTS = "reports.json"


def write_state(folder: Path, trainer: Trainer) -> None:
    """Writes the trainer's state after its last epoch into the new ``folder``."""
    folder.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trainer.state().items()}, folder / _TENSORS)
    (folder / _REPORTS).write_text(json.dumps([asdict(report) for report in trainer.reports]), encoding="utf-8")


def read_state(folder: Path, trainer: Trainer) -> None:
    """Puts ``trainer``, made with the same settings, where the one that wrote ``folder`` was."""
    reports = [EpochReport(**report) for report in json.loads((folder / _REPORTS).read_text(encoding="utf-8"))]
    trainer.restore(load_file(folder / _TENSORS), reports)
