"""Small labelled data for the tests of ray_jobs.data."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.data import DataConfig
from ray_jobs.data.rows import RawData, Rows


def rows(texts: Sequence[Any], labels: Sequence[Any], ids: Sequence[Any] | None = None, name: str = "data.csv") -> Rows:
    """Rows of one file called ``name``."""
    return Rows(texts=list(texts), labels=list(labels), ids=ids, parts=[(name, len(texts))])


def raw(train: Rows, test: Rows | None = None, names: tuple[str, ...] | None = None) -> RawData:
    """Raw data of those splits."""
    return RawData(train=train, test=test, class_names=names, provenance="test data")


def reviews(count: int, start: int = 0) -> tuple[list[str], list[str]]:
    """``count`` different texts, one third of them positive."""
    numbers = range(start, start + count)
    return [f"review number {n}" for n in numbers], ["positive" if n % 3 == 0 else "negative" for n in numbers]


def write_csv(path: Path, texts: Sequence[str], labels: Sequence[Any], **more: Sequence[Any]) -> str:
    """A CSV file with the columns text, label and ``more``; its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *more])
        writer.writerows(zip(texts, labels, *more.values(), strict=True))
    return str(path)


def write_jsonl(path: Path, records: Sequence[Any]) -> str:
    """A JSON Lines file; its path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def files(train: str | list[str], test: str | None = None, **settings: Any) -> DataConfig:
    """Settings for source files."""
    return DataConfig(
        source="files", train=[train] if isinstance(train, str) else train, test=[test] if test else None, **settings
    )
