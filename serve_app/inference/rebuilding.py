"""DistilBERT with other linear layers in its blocks, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from serve_app.inference.attention import AttentionPlan, packed_attention
from serve_app.inference.distilbert import Attention, PackedDistilBert

# From linear layers that have the same input: one layer, with their outputs side by side.
Join = Callable[..., nn.Module]


class JoinedAttention(nn.Module):
    """``Attention`` without dropout, with one product for keys and values."""

    def __init__(self, exact: Attention, join: Join) -> None:
        super().__init__()
        self.heads = exact.heads
        self.query, self.key_value = join(exact.q_lin), join(exact.k_lin, exact.v_lin)
        self.out = join(exact.out_lin)

    def forward(self, asking: torch.Tensor, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """As ``Attention.forward``."""
        query, key, value = (
            rows.unflatten(1, (self.heads, -1)) for rows in (self.query(asking), *self.key_value(hidden).chunk(2, 1))
        )
        found = packed_attention(query, key, value, plan, first_tokens=asking is not hidden)
        return self.out(found.flatten(1))


def rebuilt(
    model: PackedDistilBert,
    attention: Callable[[Any], nn.Module],
    feed_forward: Callable[[Any], nn.Module],
) -> PackedDistilBert:
    """A model like ``model`` whose blocks have what these two make of theirs. It shares all other layers with it."""
    with torch.device("meta"):  # nothing of its own
        other = PackedDistilBert(model.config)
    other.distilbert["embeddings"] = model.distilbert["embeddings"]
    other.pre_classifier, other.classifier = model.pre_classifier, model.classifier
    for block, exact in zip(blocks_of(other), blocks_of(model), strict=True):
        block.sa_layer_norm, block.output_layer_norm = exact.sa_layer_norm, exact.output_layer_norm
        block.attention, block.ffn = attention(exact.attention), feed_forward(exact.ffn)
    return other.eval()


def blocks_of(model: PackedDistilBert) -> Any:
    """The blocks of the encoder, first one first."""
    return model.distilbert["transformer"].layer
