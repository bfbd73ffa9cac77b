"""Attention over packed texts.

Attention is the one layer where texts must not see each other. On a GPU one variable-length kernel takes the whole
row. On a processor long texts get one call each, and short ones are taken in groups of similar length, padded inside
the group: a call costs about as much as the arithmetic of 100 tokens, so many tiny calls are slower than little waste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from serve_app.inference.dropout import keep_mask
from serve_app.inference.packing import PackedBatch

# Measured on 2 cores with AVX512-BF16: above this length padding costs more than the calls that it saves.
_LONGEST_GROUPED = 96
_MOST_WASTE = 0.15
# In training on a processor lengths are rounded up to a multiple of this: oneDNN compiles a kernel for every new shape
# of a matrix product, 1 to 3 ms and megabytes each.
_LENGTH_STEP = 32
# Most scores per head in one call of training: 2 texts of 256 tokens. Their matrices then stay small.
_MOST_SCORES = 2 * 256 * 256


@dataclass(frozen=True)
class TextGroup:
    """Neighbouring texts that share one attention call: tokens ``start`` to ``stop`` of the row.

    ``longest``: places of each text. ``real``: int64 [stop - start], the place of every token among all places of the
    group. ``mask``: bool [texts, 1, 1, longest], true where a key is real. Both are None when every place is taken.
    """

    start: int
    stop: int
    texts: int
    longest: int
    real: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """How one batch's attention is computed; made once per batch, used by every layer.

    ``groups``: of all texts, in their order; none where one kernel takes the whole row.
    """

    cu_seqlens: torch.Tensor
    longest: int
    groups: tuple[TextGroup, ...]


def takes_whole_row(device_type: str, dtype: torch.dtype, dropout: float) -> bool:
    """Whether one variable-length kernel does it: on a GPU, in half precision. It has no dropout."""
    return device_type == "cuda" and dtype in (torch.bfloat16, torch.float16) and not dropout


def plan_attention(batch: PackedBatch, whole_row: bool = False) -> AttentionPlan:
    """The groups of ``batch``, whose texts stand in order of length; none with ``whole_row``, see takes_whole_row."""
    if whole_row:
        return AttentionPlan(batch.cu_seqlens, batch.lengths[-1], ())
    device = batch.input_ids.device
    rounded = torch.is_grad_enabled() and device.type == "cpu"
    places = [-(-length // _LENGTH_STEP) * _LENGTH_STEP if rounded else length for length in batch.lengths]
    groups, first, start = [], 0, 0
    for end in range(1, len(batch) + 1):
        if end < len(batch) and (
            _same_shape(places, first, end) if rounded else _little_waste(batch.lengths, first, end)
        ):
            continue
        stop = start + sum(batch.lengths[first:end])
        groups.append(_group(batch.lengths[first:end], start, stop, places[end - 1], device))
        first, start = end, stop
    return AttentionPlan(batch.cu_seqlens, batch.lengths[-1], tuple(groups))


def _same_shape(places: Sequence[int], first: int, candidate: int) -> bool:
    longest = places[candidate]
    return longest == places[first] and (candidate - first + 1) * longest**2 <= _MOST_SCORES


def _little_waste(lengths: Sequence[int], first: int, candidate: int) -> bool:
    longest = lengths[candidate]
    if longest == lengths[first]:
        return True
    places = longest * (candidate - first + 1)
    return longest <= _LONGEST_GROUPED and places - sum(lengths[first : candidate + 1]) <= _MOST_WASTE * places


def _group(lengths: Sequence[int], start: int, stop: int, longest: int, device: torch.device) -> TextGroup:
    if lengths[0] == longest:
        return TextGroup(start, stop, len(lengths), longest)
    taken = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return TextGroup(start, stop, len(lengths), longest, taken.flatten().nonzero()[:, 0], taken[:, None, None, :])


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    dropout: float = 0.0,
    *,
    first_tokens: bool = False,
) -> torch.Tensor:
    """Attention inside every text of a packed row; ``key`` and ``value``: [tokens, heads, width].

    ``query`` and the result: the same or, with ``first_tokens``, [texts, heads, width], of the first of each text.
    """
    scaling = query.shape[-1] ** -0.5
    if not plan.groups:
        # Imported here: builds without CUDA may lack the kernel.
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = plan.cu_seqlens, plan.longest
        asking = torch.arange(len(starts), dtype=starts.dtype, device=starts.device) if first_tokens else starts
        queries = 1 if first_tokens else longest
        out = varlen_attn(query, key, value, asking, starts, queries, longest, scale=scaling)
        assert isinstance(out, torch.Tensor)
        return out
    # One split: a slice for each group would fill a whole row of zeros for its gradient.
    filler = len(key) - plan.groups[-1].stop
    tokens = [*(group.stop - group.start for group in plan.groups), filler]
    asking_tokens = [group.texts for group in plan.groups] if first_tokens else tokens
    rows = zip(query.split(asking_tokens), key.split(tokens), value.split(tokens), strict=False)
    parts = [_attend(group, *three, dropout, scaling) for group, three in zip(plan.groups, rows, strict=False)]
    if filler and not first_tokens:
        parts.append(value.new_zeros(filler, *value.shape[1:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def joined_attention(rows: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """What ``packed_attention`` gives for ``rows``, [tokens, 3, heads, width], which hold query, key and value of each
    token side by side: one copy brings all three to their places. On a processor, without gradients.
    """
    tokens = [group.stop - group.start for group in plan.groups]
    filler = len(rows) - sum(tokens)
    parts = []
    for group, row in zip(plan.groups, rows.split([*tokens, filler]), strict=False):
        query, key, value = _in_places(row, group).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
        parts.append(_in_row(out, group))
    if filler:
        parts.append(rows.new_zeros(filler, *rows.shape[2:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(
    group: TextGroup, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float
) -> torch.Tensor:
    """One group's attention, [tokens of the group, heads, head width], or as many as ``query`` has."""
    every_token = len(query) == len(key)
    query = _spread(query, group) if every_token else query.unsqueeze(2)
    key, value = _spread(key, group), _spread(value, group)
    if query.requires_grad and not query.is_cuda:
        out = _attend_for_training(query, key, value, group.mask, dropout, scaling)
    else:
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, dropout_p=dropout, scale=scaling
        )
    return _in_row(out, group) if every_token else out.squeeze(2)


def _spread(row: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[texts, heads, longest, head width] of a group's tokens [tokens, heads, head width]; zeros behind short texts."""
    return _in_places(row, group).transpose(1, 2)


def _in_places(row: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[texts, longest, ...] of a group's tokens [tokens, ...]; zeros behind short texts."""
    if group.real is not None:
        row = row.new_zeros(group.texts * group.longest, *row.shape[1:]).index_copy(0, group.real, row)
    return row.reshape(group.texts, group.longest, *row.shape[1:])


def _in_row(out: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[tokens, heads, head width] of a group's [texts, heads, longest, head width]: undoes ``_spread``."""
    flat = out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])
    return flat if group.real is None else flat.index_select(0, group.real)


def _attend_for_training(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
) -> torch.Tensor:
    """What ``scaled_dot_product_attention`` computes, with gradients, on a processor: [texts, heads, queries, width].

    PyTorch's fused kernel there has a slow backward pass and no dropout, and with dropout it falls back to a path that
    draws its random numbers one by one: 5.3 and 10.8 ms for a text of 256 tokens and 12 heads in bf16, against 2.6 and
    4.0 ms (one core with AMX, forward and backward).
    """
    texts, heads, queries, width = query.shape
    query, key, value = (tensor.flatten(0, 1) for tensor in (query * scaling, key, value))
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        scores = (scores.view(texts, heads, queries, -1) + bias).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        kept, scale = keep_mask(weights, dropout)
        weights, value = weights * kept, value * scale
    return torch.bmm(weights, value).view(texts, heads, queries, width)
