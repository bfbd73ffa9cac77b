"""AdamW with sparse gradients of tables takes the steps of PyTorch's own with dense ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ray_jobs.optimizer import TableAdamW, make_gradients_sparse
from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.families import new_distilbert
from serve_app.inference.networks import AveragingConfig, AveragingNetwork
from serve_app.inference.packing import pack
from tests.tiny import tokens_of

NAMES = ("no", "yes")
VOCABULARY, TEXTS = 60, 4


def distilbert() -> PackedDistilBert:
    return new_distilbert(
        layers=1, width=32, heads=2, feed_forward_width=64, vocabulary_size=VOCABULARY, max_length=64, labels=NAMES,
        dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0,
    )  # fmt: skip


def avgnet() -> AveragingNetwork:
    sizes = {"vocabulary_size": VOCABULARY, "width": 8, "buckets": 200, "dropout": 0.0, "classifier_dropout": 0.0}
    return AveragingNetwork(AveragingConfig(labels=NAMES, **sizes))


def groups(model: nn.Module) -> list[dict[str, object]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def backward(model: nn.Module, seed: int) -> None:
    """Two batches of a few texts, so that most rows have no gradient and some have two."""
    rng = np.random.default_rng(seed)
    for _ in range(2):
        batch = pack(list(tokens_of(rng, rng.integers(2, 5, size=TEXTS).tolist(), VOCABULARY)))
        labels = torch.from_numpy(rng.integers(0, 2, size=TEXTS))
        nn.functional.cross_entropy(model(batch), labels, reduction="sum").backward()


@pytest.mark.parametrize("new", [distilbert, avgnet])
@pytest.mark.parametrize("max_norm", [0.05, 1e3])
def test_it_takes_the_steps_of_adamw(new: type[nn.Module], max_norm: float) -> None:
    torch.manual_seed(0)
    stock_model = new().double()  # AdamW magnifies the rounding of a gradient that is nearly zero
    ours_model = copy.deepcopy(stock_model)
    make_gradients_sparse(ours_model)
    stock, ours = torch.optim.AdamW(groups(stock_model)), TableAdamW(groups(ours_model), 1.0, max_norm)
    sparse = 0
    for step in range(30):
        for optimizer in (stock, ours):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / 30)
        backward(stock_model, step)
        nn.utils.clip_grad_norm_(stock_model.parameters(), max_norm)
        stock.step()
        stock.zero_grad()
        backward(ours_model, step)
        sparse += sum(p.grad is not None and p.grad.is_sparse for p in ours_model.parameters())
        ours.clip_and_step()
        assert all(p.grad is None for p in ours_model.parameters())
    assert sparse == 2 * 30
    for (name, expected), found in zip(stock_model.named_parameters(), ours_model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")
        for key, value in stock.state[expected].items():
            torch.testing.assert_close(ours.state[found][key], value, rtol=1e-7, atol=1e-15)
