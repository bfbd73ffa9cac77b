"""DistilBERT in bf16 on a processor, with the weights of its blocks in the order in which oneDNN multiplies them.

A plain linear layer has its weights brought into that order anew by every call: for a few short texts that takes as
long as the product. Done once, and with GELU computed on the results before they leave the processor's registers, a
forward pass takes 0.7 to 0.9 of the time, the less the fewer tokens (DistilBERT-base, 28 to 900 tokens, one core with
AMX). Products in fp32 gain nothing: those are not oneDNN's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from serve_app.inference.distilbert import Attention, FeedForward, PackedDistilBert
from serve_app.inference.rebuilding import joined, rebuilt


def prepack(model: PackedDistilBert) -> PackedDistilBert:
    """A model like ``model``, in bf16 on a processor; it shares with it all but the blocks' linear layers, and the last
    block's keys and values."""
    return rebuilt(model, lambda exact, last: joined(exact, PrepackedLinear, last=last), PrepackedFeedForward)


def unpack(model: PackedDistilBert) -> PackedDistilBert:
    """From what ``prepack`` gave, a model with plain weights again, bit for bit: gradients need them."""

    def attention(packed: Any, last: bool) -> Attention:
        with torch.device("meta"):
            plain = Attention(model.config)
        if last:
            (plain.q_lin,), plain.k_lin, plain.v_lin = packed.query.split(1), packed.key, packed.value
        else:
            plain.q_lin, plain.k_lin, plain.v_lin = packed.product.split(3)
        (plain.out_lin,) = packed.out.split(1)
        return plain

    def feed_forward(packed: Any) -> FeedForward:
        with torch.device("meta"):
            plain = FeedForward(model.config)
        (plain.lin1,), (plain.lin2,) = packed.lin1.split(1), packed.lin2.split(1)
        return plain

    return rebuilt(model, attention, feed_forward)


class PrepackedLinear(nn.Module):
    """The given linear layers, which have the same input, as one; their outputs stand side by side."""

    def __init__(self, *linears: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = torch.cat([linear.bias.detach() for linear in linears])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """bfloat16 [tokens, outputs] of bfloat16 [tokens, inputs]."""
        found = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, self.activation, [], "none")
        assert isinstance(found, torch.Tensor)
        return found

    def split(self, count: int) -> list[nn.Linear]:
        """The ``count`` layers, of one size, that it was made of."""
        linears = []
        for weight, bias in zip(self._weight.to_dense().chunk(count), self._bias.chunk(count), strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
            linears.append(linear)
        return linears


class PrepackedFeedForward(nn.Module):
    """``FeedForward`` without dropout."""

    def __init__(self, exact: FeedForward) -> None:
        super().__init__()
        self.lin1, self.lin2 = PrepackedLinear(exact.lin1, activation="gelu"), PrepackedLinear(exact.lin2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As ``FeedForward.forward``."""
        found: torch.Tensor = self.lin2(self.lin1(hidden))
        return found
