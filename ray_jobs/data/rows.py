"""Raw labelled texts, and the error that says what is wrong with them and where."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from configs.exit_codes import UsageError


class DataError(UsageError):
    """Data that cannot be used; the message names the file and row (or column) and the fix."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split as their source gives them: nothing checked, nothing cleaned.

    ``parts`` lists the files (name, number of rows) in order, so that an error can name file and row.
    ``one_text_per_file`` says that every part is a single text, where a row number would only confuse. ``origin``
    gives for each row its index among all rows of the parts, when some have been left out. ``slices``: for each slice
    column its value for every row.
    """

    texts: Sequence[Any]
    labels: Sequence[Any]
    ids: Sequence[Any] | None
    parts: Sequence[tuple[str, int]]
    one_text_per_file: bool = False
    origin: Sequence[int] | None = None
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = sum(count for _, count in self.parts) if self.origin is None else len(self.origin)
        lengths = {len(self.texts), len(self.labels), total} | ({len(self.ids)} if self.ids is not None else set())
        lengths |= {len(values) for values in self.slices.values()}
        if len(lengths) != 1:
            raise ValueError(f"texts, labels, ids, slices and parts differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """File and row of the row at ``index`` (from 0). Rows are counted from 1, a header is not counted."""
        index = index if self.origin is None else self.origin[index]
        part = bisect_right(self._ends, index)
        name, count = self.parts[part]
        return name if self.one_text_per_file else f"{name}, row {index - (self._ends[part] - count) + 1}"

    def replace(self, texts: Sequence[str], kept: Sequence[int]) -> Rows:
        """The rows at indices ``kept``, with ``texts`` (one for each of them) instead of theirs."""
        return Rows(
            texts=texts,
            labels=[self.labels[index] for index in kept],
            ids=None if self.ids is None else [self.ids[index] for index in kept],
            parts=self.parts,
            one_text_per_file=self.one_text_per_file,
            origin=kept if self.origin is None else [self.origin[index] for index in kept],
            slices={column: [values[index] for index in kept] for column, values in self.slices.items()},
        )

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(count for _, count in self.parts))

    @staticmethod
    def concatenate(several: Sequence[Rows]) -> Rows:
        """The rows of all, in order, which have the same slice columns. Ids are kept when every one has them."""
        if len(several) == 1:
            return several[0]
        ids = [rows.ids for rows in several]
        return Rows(
            texts=[text for rows in several for text in rows.texts],
            labels=[label for rows in several for label in rows.labels],
            ids=None if any(part is None for part in ids) else [row_id for part in ids for row_id in part or ()],
            parts=[part for rows in several for part in rows.parts],
            one_text_per_file=all(rows.one_text_per_file for rows in several),
            slices={
                column: [value for rows in several for value in rows.slices[column]] for column in several[0].slices
            },
        )


@dataclass(frozen=True)
class RawData:
    """What a source gives: training rows, test rows if it has any, and the class names if it knows them."""

    train: Rows
    test: Rows | None
    class_names: tuple[str, ...] | None
    provenance: str
