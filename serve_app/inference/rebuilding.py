"""DistilBERT with other linear layers in its blocks, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from serve_app.inference.attention import AttentionPlan, joined_attention, packed_attention
from serve_app.inference.distilbert import Attention, PackedDistilBert

# From linear layers that have the same input: one layer, with their outputs side by side.
Join = Callable[..., nn.Module]


class JoinedAttention(nn.Module):
    """``Attention`` without dropout, with one product for queries, keys and values; in the last block, where only the
    first token of each text asks, with two: ``products``."""

    def __init__(self, exact: Attention, join: Join, *, last: bool) -> None:
        super().__init__()
        self.heads = exact.heads
        query, others = exact.q_lin, (exact.k_lin, exact.v_lin)
        self.products = nn.ModuleList([join(query), join(*others)] if last else [join(query, *others)])
        self.out = join(exact.out_lin)

    def forward(self, asking: torch.Tensor, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """As ``Attention.forward``."""
        if asking is hidden:
            (product,) = self.products
            found = joined_attention(product(hidden).unflatten(1, (3, self.heads, -1)), plan)
        else:
            of_asking, of_all = self.products
            rows = (of_asking(asking), *of_all(hidden).chunk(2, 1))
            query, key, value = (row.unflatten(1, (self.heads, -1)) for row in rows)
            found = packed_attention(query, key, value, plan, first_tokens=True)
        return self.out(found.flatten(1))


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
