"""DistilBERT with the linear layers of its blocks in int8: half the arithmetic of bf16 on processors with VNNI.

Weights have one scale per output, fixed when the model is loaded; activations one per token, taken as they come. So a
token's rounding depends on that token alone, and no text's answer on its neighbours in the batch. (One scale for all
tokens, as PyTorch's own dynamic quantisation has it, lets the largest activation of any text coarsen all others.) The
products are summed exactly, in int32. All else stays in fp32, also what is left of the last block's keys and values
(``first_token_attention``).
"""

from __future__ import annotations

import torch
from torch import nn

from serve_app.inference.distilbert import FeedForward, PackedDistilBert
from serve_app.inference.rebuilding import joined, rebuilt

_LARGEST = 127
# Activations are handed to oneDNN as uint8 with this zero point: its kernel for int8 ones is a slow reference.
_ZERO_POINT = 128
_TINIEST = 1e-30  # a row of zeros would be divided by its largest value


def has_int8() -> bool:
    """Whether this processor has VNNI. Without it, sums of two products are kept in 16 bits, which they overflow."""
    return torch.cpu._is_vnni_supported()


def quantize(model: PackedDistilBert) -> PackedDistilBert:
    """A model like ``model``, in fp32 on a processor, with the linear layers of its blocks in int8.

    It shares all other layers with ``model``, and the last block's keys and values.
    """
    quantized = rebuilt(model, lambda exact, last: joined(exact, Int8Linear, last=last), Int8FeedForward)
    quantized.compiles_products = True
    return quantized


class Int8Linear(nn.Module):
    """The given linear layers, which have the same input, as one; their outputs stand side by side."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self._scales = weight.abs().amax(1).clamp_min(_TINIEST) / _LARGEST
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = torch.cat([linear.bias.detach() for linear in linears])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [tokens, outputs] of float32 [tokens, inputs]."""
        largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        scales = largest.clamp_min_(_TINIEST).div_(_LARGEST)
        rounded = (rows / scales).round_().to(torch.int8)
        shifted = rounded.view(torch.uint8).bitwise_xor_(
            _ZERO_POINT
        )  # int8 first: PyTorch converts to uint8 8 times as slowly
        products = torch.ops.onednn.qlinear_pointwise(
            *(shifted, 1.0, _ZERO_POINT, self._packed, self._scales, self._zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        return torch.addcmul(self._bias, products, scales, out=products)


class Int8FeedForward(nn.Module):
    """``FeedForward`` without dropout."""

    def __init__(self, exact: FeedForward) -> None:
        super().__init__()
        self._lin1, self._lin2 = Int8Linear(exact.lin1), Int8Linear(exact.lin2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As ``FeedForward.forward``."""
        # In place: the kernel clears every fresh page, and these are the largest matrices (10 % of a pass).
        return self._lin2(torch.ops.aten.gelu_(self._lin1(hidden)))
