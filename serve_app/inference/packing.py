"""Packed batches: texts laid end to end in one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PackedBatch:
    """Texts end to end, shortest first, as the model takes them.

    ``input_ids``, ``position_ids``: int64 [1, tokens]; positions restart at 0 with every text. ``lengths``: tokens of
    each packed text. ``cu_seqlens``: int32 [texts + 1], where each text begins. ``order[i]`` is the place in the
    caller's list of packed text i.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    order: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        if torch.device(device).type == "cpu":
            return self
        move = [
            tensor.to(device, non_blocking=True)
            for tensor in (self.input_ids, self.position_ids, self.cu_seqlens, self.order)
        ]
        return PackedBatch(move[0], move[1], move[2], self.lengths, move[3])


def pack(texts: Sequence[np.ndarray]) -> PackedBatch:
    """Packs the token ids of ``texts`` (int arrays, none empty). Raises ValueError for no text or an empty one.

    Shortest first, so that texts of similar length stand together and attention can take them in groups.
    """
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    if not len(texts) or not lengths.all():
        raise ValueError("a packed batch needs at least one text, and every text at least one token")
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    ids = np.concatenate([texts[i] for i in order]).astype(np.int64)
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return PackedBatch(
        torch.from_numpy(ids)[None],
        torch.from_numpy(positions)[None],
        torch.from_numpy(offsets.astype(np.int32)),
        tuple(lengths.tolist()),
        torch.from_numpy(order),
    )


def plan_batches(
    lengths: np.ndarray | Sequence[int], max_tokens: int, max_texts: int, order: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cuts texts into batches of at most ``max_tokens`` tokens (their sum) and ``max_texts`` texts.

    ``lengths``: tokens of each text. ``order``: the indices to take, in this order (default: all). Consecutive texts
    stay together. A text longer than ``max_tokens`` gets a batch of its own. Returns arrays of indices.
    """
    lengths = np.asarray(lengths)
    order = np.arange(len(lengths)) if order is None else np.asarray(order)
    batches, start, tokens = [], 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > start and (tokens + length > max_tokens or place - start >= max_texts):
            batches.append(order[start:place])
            start, tokens = place, 0
        tokens += length
    if start < len(order):
        batches.append(order[start:])
    return batches
