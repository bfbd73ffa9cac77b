"""Attention over packed texts, registered with transformers under ``PACKED_ATTENTION``.

Attention is the one layer where texts must not see each other. On a GPU one variable-length kernel takes the whole
row. On a processor long texts get one call each, and short ones are taken in groups of similar length, padded inside
the group: a call costs about as much as the arithmetic of 100 tokens, so many tiny calls are slower than little waste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from serve_app.inference.dropout import keep_mask
from serve_app.inference.packing import PackedBatch

PACKED_ATTENTION = "trialgate_packed"

# Measured on 2 cores with AVX512-BF16: above this length padding costs more than the calls that it saves.
_LONGEST_GROUPED = 96
_MOST_WASTE = 0.15


@dataclass(frozen=True)
class TextGroup:
    """Neighbouring texts that share one attention call: tokens ``start`` to ``stop`` of the row.

    ``padded``: int64 [texts * longest], the row's token for every padded place (a pad repeats the first token).
    ``real``: int64 [stop - start], the padded place of every token. ``mask``: bool [texts, 1, 1, longest], true where
    a key is real. All three are None when no text of the group needs padding.
    """

    start: int
    stop: int
    texts: int
    longest: int
    padded: torch.Tensor | None = None
    real: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """How one batch's attention is computed; made once per batch, used by every layer."""

    cu_seqlens: torch.Tensor
    longest: int
    groups: tuple[TextGroup, ...]


def plan_attention(batch: PackedBatch) -> AttentionPlan:
    """The groups of ``batch``, whose texts stand in order of length."""
    device = batch.input_ids.device
    groups, first, start = [], 0, 0
    for end in range(1, len(batch) + 1):
        if end < len(batch) and _fits(batch.lengths, first, end):
            continue
        stop = start + sum(batch.lengths[first:end])
        groups.append(_group(batch.lengths[first:end], start, stop, device))
        first, start = end, stop
    return AttentionPlan(batch.cu_seqlens, batch.lengths[-1], tuple(groups))


def _fits(lengths: tuple[int, ...], first: int, candidate: int) -> bool:
    longest = lengths[candidate]
    if longest == lengths[first]:
        return True
    places = longest * (candidate - first + 1)
    return longest <= _LONGEST_GROUPED and places - sum(lengths[first : candidate + 1]) <= _MOST_WASTE * places


def _group(lengths: tuple[int, ...], start: int, stop: int, device: torch.device) -> TextGroup:
    texts, longest = len(lengths), lengths[-1]
    if lengths[0] == longest:
        return TextGroup(start, stop, texts, longest)
    sizes = torch.tensor(lengths, device=device)
    places = torch.arange(longest, device=device)
    keys = places < sizes[:, None]
    begins = torch.cumsum(sizes, 0) - sizes
    padded = torch.where(keys, begins[:, None] + places, begins[:, None]).flatten()
    return TextGroup(start, stop, texts, longest, padded, keys.flatten().nonzero()[:, 0], keys[:, None, None, :])


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside every text of a packed row; transformers' attention signature.

    ``query``, ``key``, ``value``: [1, heads, tokens, head width]. Returns [1, tokens, heads, head width].
    """
    # [tokens, heads, head width]
    rows = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        # Imported here: builds without CUDA may lack the kernel. It has no dropout, so training with attention
        # dropout takes the grouped path below.
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = plan.cu_seqlens, plan.longest
        out = varlen_attn(rows[0], rows[1], rows[2], starts, starts, longest, longest, scale=scaling)
        assert isinstance(out, torch.Tensor)
        return out[None], None
    # One split: a slice for each group would fill a whole row of zeros for its gradient.
    sizes = [group.stop - group.start for group in plan.groups]
    parts = [
        _attend(group, taken, dropout, query.shape[-1] ** -0.5 if scaling is None else scaling)
        for group, *taken in zip(plan.groups, *(row.split(sizes) for row in rows), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _attend(group: TextGroup, rows: Sequence[torch.Tensor], dropout: float, scaling: float) -> torch.Tensor:
    """One group's attention, [tokens of the group, heads, head width]."""
    shape = (group.texts, group.longest, *rows[0].shape[1:])
    if group.padded is not None:
        rows = [row.index_select(0, group.padded) for row in rows]
    query, key, value = (row.reshape(shape).transpose(1, 2) for row in rows)
    if query.requires_grad and not query.is_cuda:
        out = _attend_for_training(query, key, value, group.mask, dropout, scaling)
    else:
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, dropout_p=dropout, scale=scaling
        )
    flat = out.transpose(1, 2).reshape(-1, *rows[0].shape[1:])
    return flat if group.real is None else flat.index_select(0, group.real)


def _attend_for_training(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
) -> torch.Tensor:
    """What ``scaled_dot_product_attention`` computes, with gradients, on a processor: [texts, heads, length, width].

    PyTorch's fused kernel there has a slow backward pass and no dropout, and with dropout it falls back to a path that
    draws its random numbers one by one: 5.3 and 10.8 ms for a text of 256 tokens and 12 heads in bf16, against 2.6 and
    4.0 ms (one core with AMX, forward and backward).
    """
    texts, heads, length, width = query.shape
    query, key, value = (tensor.reshape(-1, length, width) for tensor in (query * scaling, key, value))
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        scores = (scores.view(texts, heads, length, length) + bias).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        kept, scale = keep_mask(weights, dropout)
        weights, value = weights * kept, value * scale
    return torch.bmm(weights, value).view(texts, heads, length, width)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
