"""DistilBERT with other linear layers in its blocks, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from serve_app.inference.attention import (
    AttentionPlan,
    first_token_attention,
    joined_attention,
    packed_attention,
    spares_keys,
)
from serve_app.inference.distilbert import Attention, PackedDistilBert

# From linear layers that have the same input: one layer, with their outputs side by side.
Join = Callable[..., nn.Module]


class JoinedAttention(nn.Module):
    """``Attention`` without dropout, with one product for queries, keys and values."""

    def __init__(self, exact: Attention, join: Join) -> None:
        super().__init__()
        self.heads, self.product = exact.heads, join(exact.q_lin, exact.k_lin, exact.v_lin)
        self.out = join(exact.out_lin)

    def forward(self, asking: torch.Tensor, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """As ``Attention.forward`` for all tokens."""
        found = joined_attention(self.product(hidden).unflatten(1, (3, self.heads, -1)), plan)
        return self.out(found.flatten(1))


class LastAttention(nn.Module):
    """``Attention`` without dropout in the last block, where only the first token of each text asks.

    ``key`` and ``value`` are plain: ``first_token_attention`` takes their weights. In bf16, where ``spares_keys`` is
    not true of every plan, the weights are there twice (2.4 MB of DistilBERT-base): ``others`` gives keys and values of
    all tokens in one product.
    """

    def __init__(self, exact: Attention, join: Join) -> None:
        super().__init__()
        self.heads, self.key, self.value = exact.heads, exact.k_lin, exact.v_lin
        self.query, self.out = join(exact.q_lin), join(exact.out_lin)
        in_half = exact.k_lin.weight.dtype != torch.float32
        self.others = join(exact.k_lin, exact.v_lin) if in_half else None

    def forward(self, asking: torch.Tensor, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """As ``Attention.forward`` for the first token of each text."""
        query = self.query(asking).unflatten(1, (self.heads, -1))
        if spares_keys(plan, hidden.dtype):
            found = first_token_attention(query, hidden, self.key.weight, self.value.weight, plan)
            return self.out(found.flatten(1) + self.value.bias)
        assert self.others is not None
        key, value = (row.unflatten(1, (self.heads, -1)) for row in self.others(hidden).chunk(2, 1))
        return self.out(packed_attention(query, key, value, plan, first_tokens=True).flatten(1))


def joined(exact: Attention, join: Join, *, last: bool) -> nn.Module:
    """``exact`` for the passes that compute no gradients; ``last``: of the last block."""
    return (LastAttention if last else JoinedAttention)(exact, join)


def rebuilt(
    model: PackedDistilBert,
    attention: Callable[[Any, bool], nn.Module],
    feed_forward: Callable[[Any], nn.Module],
) -> PackedDistilBert:
    """A model like ``model`` whose blocks have what these two make of theirs; ``attention`` is told of the last one. It
    shares all other layers with ``model``."""
    with torch.device("meta"):  # nothing of its own
        other = PackedDistilBert(model.config)
    other.distilbert["embeddings"] = model.distilbert["embeddings"]
    other.pre_classifier, other.classifier = model.pre_classifier, model.classifier
    last = blocks_of(model)[-1]
    for block, exact in zip(blocks_of(other), blocks_of(model), strict=True):
        block.sa_layer_norm, block.output_layer_norm = exact.sa_layer_norm, exact.output_layer_norm
        block.attention, block.ffn = attention(exact.attention, exact is last), feed_forward(exact.ffn)
    return other.eval()


def blocks_of(model: PackedDistilBert) -> Any:
    """The blocks of the encoder, first one first."""
    return model.distilbert["transformer"].layer
