"""A small model, trained in this process on the quickstart's data: what the tests here have without ``--model``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.loading import load_settings
from ray_jobs.data.prepare import prepare
from ray_jobs.tokens import tokenise
from ray_jobs.training import EpochReport, Trainer
from ray_jobs.trial import build_model, save_model
from serve_app.inference.metrics import F1Definition

# One trial of the quickstart as its search might draw it.
_TRIAL = ("training.learning_rate=0.0015", "training.warmup_ratio=0.1")


def train_small(home: Path) -> Path:
    """The saved-model folder of its best epoch, below ``home``. Takes 15 s of one core and needs no Ray."""
    settings = load_settings("quickstart.yaml", [f"home={home}", *_TRIAL])
    data = tokenise(settings, prepare(settings.data))
    with _one_thread():
        model = build_model(settings, data)
        trainer = Trainer(
            model,
            data.train,
            data.validation,
            settings.training,
            label_names=data.label_names,
            f1=F1Definition.from_key(data.f1_key),
        )
        best = home

        def save(epoch: EpochReport) -> None:
            nonlocal best
            if epoch.is_best:
                best = home / f"epoch-{epoch.epoch}"
                save_model(best, trainer, model, data, settings)

        trainer.run(save)
    return best


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As a trial of the quickstart has it: on matrices this small a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
