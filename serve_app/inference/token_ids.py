"""Texts as flat token ids. Needs numpy alone, so what only hands them on does not load torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class TokenizedTexts:
    """The token ids of many texts in two arrays, cheap to share between processes.

    ``ids``: int32, all texts end to end. ``offsets``: int64 [texts + 1]; text i is ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, texts: Iterable[Sequence[int] | np.ndarray]) -> TokenizedTexts:
        """The given token ids, text by text."""
        texts = list(texts)
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(texts), dtype=np.int32, count=int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 [texts]."""
        return np.diff(self.offsets)

    def select(self, indices: Sequence[int] | np.ndarray) -> TokenizedTexts:
        """The texts at ``indices``, in that order."""
        return TokenizedTexts.from_lists([self[int(index)] for index in indices])
