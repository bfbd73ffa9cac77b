"""Attention over packed texts.

Attention is the one layer where texts must not see each other. On a GPU one variable-length kernel takes the whole
row. On a processor texts are taken in groups of similar length, padded inside the group. A group is computed by
PyTorch's fused kernel, or by two products for all heads of all its texts with a softmax between them: in training, and
in bf16 where the kernel multiplies one head of one text at a time, and so slowly (processors without AMX).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from serve_app.inference.dropout import keep_mask
from serve_app.inference.packing import PackedBatch

# For the kernel, measured on 2 cores with AVX512-BF16: above this length padding costs more than the calls it saves.
_LONGEST_GROUPED = 96
_MOST_WASTE = 0.15
# For products lengths are rounded up to a multiple of this: oneDNN compiles a kernel for every new shape of a product,
# 1 to 3 ms and megabytes each, and a softmax in bf16 takes 4 times as long for rows of 28 as for rows of 32.
_LENGTH_STEP = 32
_TEXTS_STEP = 8  # the same for numbers of texts, where only the first tokens ask; products in fp32 are not oneDNN's
# Most scores per head in one group for products. In training 2 texts of 256 tokens: their matrices stay small. Else 8
# of 32: larger groups were no faster, and few sizes of groups are few shapes (600 batches of 1 to 19 sentences,
# DistilBERT-base: 228 MB more than at first instead of 291).
_MOST_SCORES_TRAINING, _MOST_SCORES = 2 * 256 * 256, 8 * 32 * 32
# In bf16 the kernel keeps what products would take longer for (one core of an EPYC with AVX512-BF16): rows of fewer
# tokens than this, since products take 0.1 ms however little there is to compute; and texts so short that rounded up
# they have twice as many places: 40 of 8 tokens took 2.6 instead of 1.4 ms.
_FEWEST_FOR_PRODUCTS = 64
_MOST_PLACES_PER_TOKEN = 2


@dataclass(frozen=True)
class TextGroup:
    """Neighbouring texts that are computed together: tokens ``start`` to ``stop`` of the row.

    ``longest``: places of each text. ``by_products``: by two products and a softmax, else by the fused kernel. Where
    texts are shorter: ``real``, int64 [stop - start], the place in the group of each of its tokens; ``tokens``, int64
    [texts * longest], the token of the group, counted from its first, that stands at each place, which behind a text is
    that text's first one again; ``bias``, [texts, 1, 1, longest], what is added to the scores: 0 for a token, else
    -infinity. All three are None when every place is taken.
    """

    start: int
    stop: int
    texts: int
    longest: int
    by_products: bool
    real: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    bias: torch.Tensor | None = None


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


def plan_attention(batch: PackedBatch, dtype: torch.dtype, dropout: float = 0.0) -> AttentionPlan:
    """How the attention of ``batch``, whose texts stand in order of length, is computed on its device; for one with
    gradients if they are switched on now. ``dtype``: of queries, keys and values; ``dropout``: a probability."""
    device = batch.input_ids.device
    if takes_whole_row(device.type, dtype, dropout):
        return AttentionPlan(batch.cu_seqlens, batch.lengths[-1], ())
    training = torch.is_grad_enabled()
    rounded = [-(-length // _LENGTH_STEP) * _LENGTH_STEP for length in batch.lengths]
    by_products = device.type == "cpu" and (
        training or (dtype == torch.bfloat16 and _worth_products(batch.lengths, rounded) and has_slow_kernel())
    )
    places = rounded if by_products else batch.lengths
    most_scores = _MOST_SCORES_TRAINING if training else _MOST_SCORES
    groups, first, start = [], 0, 0
    for end in range(1, len(batch) + 1):
        if end < len(batch) and (
            _same_shape(places, first, end, most_scores) if by_products else _little_waste(batch.lengths, first, end)
        ):
            continue
        stop = start + sum(batch.lengths[first:end])
        taken = TextGroup(start, stop, end - first, places[end - 1], by_products)
        groups.append(_padded(taken, batch.lengths[first:end], dtype, device))
        first, start = end, stop
    return AttentionPlan(batch.cu_seqlens, batch.lengths[-1], tuple(groups))


@functools.cache
def has_slow_kernel() -> bool:
    """Whether this processor multiplies bf16, but without AMX: with it, the fused kernel took 0.6 ms for a text of 256
    tokens and products 0.9."""
    return has_bf16_products() and not torch.cpu._is_amx_tile_supported()


def has_bf16_products() -> bool:
    """Whether oneDNN computes products in bf16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _worth_products(lengths: Sequence[int], rounded: Sequence[int]) -> bool:
    tokens = sum(lengths)
    return tokens >= _FEWEST_FOR_PRODUCTS and _MOST_PLACES_PER_TOKEN * tokens >= sum(rounded)


def _same_shape(places: Sequence[int], first: int, candidate: int, most_scores: int) -> bool:
    longest = places[candidate]
    return longest == places[first] and (candidate - first + 1) * longest**2 <= most_scores


def _little_waste(lengths: Sequence[int], first: int, candidate: int) -> bool:
    longest = lengths[candidate]
    if longest == lengths[first]:
        return True
    places = longest * (candidate - first + 1)
    return longest <= _LONGEST_GROUPED and places - sum(lengths[first : candidate + 1]) <= _MOST_WASTE * places


def _padded(group: TextGroup, lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> TextGroup:
    """``group`` with what its texts of these ``lengths`` need."""
    if lengths[0] == group.longest:
        return group
    of_texts, places = torch.tensor(lengths, device=device)[:, None], torch.arange(group.longest, device=device)
    taken = places < of_texts
    tokens = of_texts.cumsum(0) - of_texts + places * taken
    bias = torch.zeros(taken.shape, dtype=dtype, device=device).masked_fill_(~taken, -torch.inf)
    return replace(group, real=taken.flatten().nonzero()[:, 0], tokens=tokens.flatten(), bias=bias[:, None, None, :])


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
    filler, scaling = len(rows) - sum(tokens), rows.shape[-1] ** -0.5
    parts = []
    for group, row in zip(plan.groups, rows.split([*tokens, filler]), strict=False):
        query, key, value = _in_places(row, group).permute(2, 0, 3, 1, 4).unbind()
        parts.append(_in_row(_attended(query, key, value, group, 0.0, scaling), group))
    if filler:
        parts.append(rows.new_zeros(filler, *rows.shape[2:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def spares_keys(plan: AttentionPlan, dtype: torch.dtype) -> bool:
    """Whether ``first_token_attention`` does it: on a processor, but not in bf16 where the kernel takes groups of any
    length, each of which would be a new shape of two products (see _LENGTH_STEP)."""
    return plan.cu_seqlens.is_cpu and (dtype == torch.float32 or plan.groups[0].by_products)


def first_token_attention(
    query: torch.Tensor,
    hidden: torch.Tensor,
    key_weight: torch.Tensor,
    value_weight: torch.Tensor,
    plan: AttentionPlan,
    dropout: float = 0.0,
) -> torch.Tensor:
    """What ``packed_attention`` gives the first token of each text, [texts, heads, width], without a key or a value of
    any other token; for plans of which ``spares_keys`` is true.

    ``query``: [texts, heads, width]; ``hidden``: [tokens, units], what keys and values would be computed of;
    ``key_weight`` and ``value_weight``: [heads * width, units]. A score is q (W h) = (q W) h, and the sum of p (W h) is
    W (sum of p h), so both weights meet one row for each text and head instead of every token: of the last block's six
    products two are left out, 3 % of a forward pass of six blocks. A bias of the keys adds the same to all scores of a
    text, which softmax does not see; one of the values is the caller's to add, since weights sum up to 1: with dropout
    on average.
    """
    texts, heads, width = query.shape
    of_heads = (heads, width, hidden.shape[1])
    filler = 0 if hidden.dtype == torch.float32 else -texts % _TEXTS_STEP
    asking = functional.pad(query * width**-0.5, (0, 0, 0, 0, 0, filler)).transpose(0, 1)
    asking = torch.bmm(asking, key_weight.view(of_heads)).transpose(0, 1)
    tokens = [group.stop - group.start for group in plan.groups]
    rows = zip(asking.split([*(group.texts for group in plan.groups), filler]),
               hidden.split([*tokens, len(hidden) - sum(tokens)]), strict=True)  # fmt: skip
    means = torch.cat([_mean_of_places(group, *two, dropout) for group, two in zip(plan.groups, rows, strict=False)])
    means = functional.pad(means, (0, 0, 0, 0, 0, filler)).transpose(0, 1)
    return torch.bmm(means, value_weight.view(of_heads).transpose(1, 2)).transpose(0, 1)[:texts]


def _mean_of_places(group: TextGroup, asking: torch.Tensor, hidden: torch.Tensor, dropout: float) -> torch.Tensor:
    """[texts, heads, units]: for each head of a group's texts, the mean of ``hidden`` with its attention's weights."""
    places = _in_places(hidden, group)
    scores = torch.bmm(asking, places.transpose(1, 2))
    if group.bias is not None:
        scores = scores + group.bias[:, 0]
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        kept, scale = keep_mask(weights, dropout)
        weights = weights * kept * scale
    return torch.bmm(weights, places)


def _attend(
    group: TextGroup, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float
) -> torch.Tensor:
    """One group's attention, [tokens of the group, heads, head width], or as many as ``query`` has."""
    every_token = len(query) == len(key)
    query = _spread(query, group) if every_token else query.unsqueeze(2)
    out = _attended(query, _spread(key, group), _spread(value, group), group, dropout, scaling)
    return _in_row(out, group) if every_token else out.squeeze(2)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: TextGroup, dropout: float, scaling: float
) -> torch.Tensor:
    """[texts, heads, queries, head width]; keys and values have the group's places."""
    if group.by_products:
        return _attended_by_products(query, key, value, group.bias, dropout, scaling)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=group.bias, dropout_p=dropout, scale=scaling
    )


def _spread(row: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[texts, heads, longest, head width] of a group's tokens [tokens, heads, head width]."""
    return _in_places(row, group).transpose(1, 2)


def _in_places(row: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[texts, longest, ...] of a group's tokens [tokens, ...]; behind a short text stands nothing of another."""
    if group.real is not None and row.requires_grad:  # whose gradient gathers, that of index_select adds up
        row = row.new_zeros(group.texts * group.longest, *row.shape[1:]).index_copy(0, group.real, row)
    elif group.tokens is not None:
        row = row.index_select(0, group.tokens)
    return row.reshape(group.texts, group.longest, *row.shape[1:])


def _in_row(out: torch.Tensor, group: TextGroup) -> torch.Tensor:
    """[tokens, heads, head width] of a group's [texts, heads, longest, head width]: undoes ``_spread``."""
    flat = out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])
    return flat if group.real is None else flat.index_select(0, group.real)


def _attended_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    dropout: float,
    scaling: float,
) -> torch.Tensor:
    """What ``scaled_dot_product_attention`` computes, on a processor: [texts, heads, queries, width].

    In bf16 the fused kernel took 1.0 ms for ten texts of 28 tokens and 2.9 ms for one of 256, this 0.6 and 1.7: a whole
    forward pass takes 4 to 5 % less (one core of an EPYC with AVX512-BF16, DistilBERT-base). Scores and weights are
    rounded to bf16 here, which doubles attention's own rounding error; probabilities are as far from those in fp32 as
    with the kernel (MiniLM, 120 sentences: 0.005 at most). With gradients the kernel has a slow backward pass and no
    dropout, and with dropout it falls back to a path that draws its random numbers one by one: 5.3 and 10.8 ms for a
    text of 256 tokens, against 2.6 and 4.0 ms (one core with AMX, forward and backward).
    """
    texts, heads, queries, _ = query.shape
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    if query.requires_grad:
        scores = torch.bmm(query * scaling, key.transpose(1, 2))
        if bias is not None:
            scores = (scores.view(texts, heads, queries, -1) + bias).view_as(scores)
    else:  # in one go; with gradients it made a step of training on sentences 5 % slower
        every = query.new_zeros(()) if bias is None else bias.expand(texts, heads, queries, -1).flatten(0, 1)
        beta = 0 if bias is None else 1
        scores = torch.baddbmm(every, query, key.transpose(1, 2), beta=beta, alpha=scaling)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        kept, scale = keep_mask(weights, dropout)
        weights, value = weights * kept, value * scale
    return torch.bmm(weights, value).view(texts, heads, queries, -1)
