"""What preparing the data found and changed, for people and for the run's record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SplitReport:
    """Counts of one split as the source has it, in texts."""

    read: int = 0
    empty_dropped: int = 0
    changed_by_cleaning: int = 0
    duplicates_removed: int = 0
    conflicting_texts: int = 0
    conflicting_rows_removed: int = 0


@dataclass
class DataReport:
    """What became of the source's rows.

    ``source`` has the splits that the source gave; ``classes`` and ``digests`` have train, validation and test as they
    are used. ``conflicts`` shows the first few texts that stood in one split under two labels: all their rows were
    removed, since nothing says which label is right. ``train_in_test`` counts training texts removed because they also
    stand in test, and ``train_in_test_other_label`` those of them whose label there is another one. ``test_slices``:
    the test texts of each value of each slice column.
    """

    provenance: str
    label_names: tuple[str, ...]
    f1: str
    source: dict[str, SplitReport] = field(default_factory=dict)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    train_in_test: int = 0
    train_in_test_other_label: int = 0
    test_from_train: bool = False
    not_sampled: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    test_slices: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"label_names": list(self.label_names)}

    def lines(self) -> list[str]:
        """The report for people: one line per fact, nothing about what did not happen."""
        lines = [f"data: {self.provenance}; F1 of {self.f1}"]
        for split, counts in self.source.items():
            facts = [f"{counts.read:,} read"]
            for number, what in (
                (counts.changed_by_cleaning, "cleaned"),
                (counts.empty_dropped, "empty dropped"),
                (counts.duplicates_removed, "duplicates removed"),
                (counts.conflicting_rows_removed, f"removed for {_texts(counts.conflicting_texts)} with two labels"),
            ):
                if number:
                    facts.append(f"{number:,} {what}")
            lines.append(f"  source {split}: {', '.join(facts)}")
        if self.test_from_train:
            lines.append("  the source has no test split: one was cut off by content hash")
        if self.train_in_test:
            other = self.train_in_test_other_label
            note = f" ({other:,} with another label there)" if other else ""
            lines.append(f"  {self.train_in_test:,} training texts also stand in test and were removed{note}")
        lines += [
            f"  two labels ({', '.join(found['labels'])}) for {found['text']!r}: {'; '.join(found['rows'])}"
            for found in self.conflicts
        ]
        for split, classes in self.classes.items():
            per_class = ", ".join(f"{name} {count:,}" for name, count in classes.items())
            unused = self.not_sampled.get(split, 0)
            note = f", {unused:,} left out by data.max_{split}_texts" if unused else ""
            lines.append(
                f"  {split}: {sum(classes.values()):,} texts ({per_class}), digest {self.digests[split][:12]}{note}"
            )
        for column, values in self.test_slices.items():
            lines.append(f"  test by {column}: {', '.join(f'{value} {count:,}' for value, count in values.items())}")
        return lines


def _texts(count: int) -> str:
    return "1 text" if count == 1 else f"{count:,} texts"
