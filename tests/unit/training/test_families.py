"""The trainer takes every family: it learns, and the same seed gives the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from configs.model import TrainingConfig
from ray_jobs.training import EpochReport, LabelledTokens, Trainer, seed_everything
from serve_app.inference.families import new_network
from serve_app.inference.metrics import F1Definition
from serve_app.inference.networks import SmallNetwork
from serve_app.inference.token_ids import TokenizedTexts
from tests.tiny import tokens_of

SIZES: dict[str, dict[str, Any]] = {
    "avgnet": {"ngrams": 2, "buckets": 4096},
    "cnet": {"filters": 16},
    "rnn": {"hidden_width": 16},
}


def labelled(texts: int, seed: int) -> LabelledTokens:
    """Texts of class 1 when token 7 stands right before token 8; both tokens are in every text, so order counts."""
    rng = np.random.default_rng(seed)
    rows = tokens_of(rng, rng.integers(4, 30, size=texts).tolist(), 60)
    labels = rng.integers(0, 2, size=texts)
    tokens = []
    for row, label in zip(rows, labels, strict=True):
        row = np.where((row == 7) | (row == 8), 9, row)
        place = int(rng.integers(0, len(row) - 1))
        row[place : place + 2] = (7, 8) if label else (8, 7)
        tokens.append(row)
    return LabelledTokens(TokenizedTexts.from_lists(tokens), labels)


def trained(family: str, precision: str, epochs: int) -> tuple[SmallNetwork, list[EpochReport]]:
    seed_everything(3)
    model = new_network(family, labels=("no", "yes"), vocabulary_size=60, width=16, **SIZES[family])
    config = TrainingConfig.model_validate(
        {"epochs": epochs, "batch_size": 16, "learning_rate": 2e-2, "precision": precision, "max_batch_tokens": 150}
    )
    trainer = Trainer(model, labelled(400, 0), labelled(100, 1), config, label_names=("no", "yes"),
                      f1=F1Definition("binary", "yes"))  # fmt: skip
    return model, trainer.run()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", SIZES)
def test_it_learns_the_order_of_two_words(family: str, precision: str) -> None:
    _, reports = trained(family, precision, epochs=4)
    assert reports[-1].best_validation_f1 > 0.95


@pytest.mark.parametrize("family", SIZES)
def test_same_seed_same_weights(family: str) -> None:
    (first, _), (second, _) = trained(family, "fp32", 1), trained(family, "fp32", 1)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not first.embeddings.weight[0].any(), "the gap between texts stays zero"
