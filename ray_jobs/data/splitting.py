"""Which rows belong to which split: decided by the content of a text, never by where its row stands.

Every purpose (test, validation, sample) draws an independent number from 0 to 1 for every text: a hash of the text's
content id, the purpose and ``data.seed``. So rows can be reordered without moving any, and what is a random choice
for one purpose stays random for the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Purpose = Literal["test", "validation", "sample"]


@dataclass(frozen=True)
class Duplicates:
    """Which rows of one split stay (``kept``, sorted indices) and which texts stood there under two labels."""

    kept: np.ndarray
    removed: int
    conflicts: list[list[int]]

    @property
    def conflicting_rows(self) -> int:
        """Rows that were dropped because their text has another label elsewhere in the split."""
        return sum(len(rows) for rows in self.conflicts)


def find_duplicates(texts: Sequence[str], labels: np.ndarray, ids: Sequence[Any]) -> Duplicates:
    """One row per text; none for a text with two labels.

    Of equal rows the one with the smallest id stays (the first, where the id is the content hash), and all rows of a
    text whose labels conflict go, since nothing says which is right: neither depends on the order of the rows. ``ids``
    are anything that can be ordered.
    """
    rows_of: dict[str, int | list[int]] = {}
    for index, text in enumerate(texts):
        known = rows_of.setdefault(text, index)
        if isinstance(known, list):
            known.append(index)
        elif known != index:
            rows_of[text] = [known, index]
    keep = np.zeros(len(texts), dtype=bool)
    removed, conflicts = 0, []
    for rows in rows_of.values():
        if isinstance(rows, int):
            keep[rows] = True
        elif len({int(labels[row]) for row in rows}) > 1:
            conflicts.append(rows)
        else:
            keep[min(rows, key=lambda row: (ids[row], row))] = True
            removed += len(rows) - 1
    return Duplicates(np.flatnonzero(keep), removed, conflicts)


def shares(content_ids: Sequence[str], purpose: Purpose, seed: int) -> np.ndarray:
    """A number in [0, 1) per text, float64, uniform and independent between purposes and seeds."""
    prefix = hashlib.blake2b(f"trialgate-{purpose}-{seed}:".encode(), digest_size=8)
    drawn = bytearray()
    for content_id in content_ids:
        digest = prefix.copy()
        digest.update(content_id.encode())
        drawn += digest.digest()
    # The upper 53 bits: all that a float64 holds, so that no number rounds up to 1.
    return (np.frombuffer(bytes(drawn), dtype=">u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stratified(content_ids: Sequence[str], labels: np.ndarray, count: int, purpose: Purpose, seed: int) -> np.ndarray:
    """Sorted indices of ``count`` texts with the class shares of the whole, chosen by rank of their hash in the class.

    Every class keeps at least one text. Rows that are added later move only as many rows as the class quotas change.
    """
    drawn = shares(content_ids, purpose, seed)
    by_hash = np.lexsort((np.asarray(content_ids), drawn))
    chosen = [
        by_hash[labels[by_hash] == class_id][:quota]
        for class_id, quota in enumerate(class_quotas(np.bincount(labels), count))
    ]
    return np.sort(np.concatenate(chosen))


def class_quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """``total`` (at most ``counts.sum()``) shared out in proportion to ``counts``, int64 [classes].

    Largest remainders; at least 1 for a class that has any. ValueError when ``total`` is below the number of classes.
    """
    present = counts > 0
    if not present.sum() <= total <= counts.sum():
        raise ValueError(f"cannot share {total} texts among {present.sum()} classes of {counts.sum()} texts")
    exact = total * counts / counts.sum()
    quotas = np.maximum(np.floor(exact).astype(np.int64), present)
    while quotas.sum() < total:
        quotas[np.where(quotas < counts, exact - quotas, -np.inf).argmax()] += 1
    while quotas.sum() > total:
        quotas[np.where(quotas > 1, quotas - exact, -np.inf).argmax()] -= 1
    return quotas
