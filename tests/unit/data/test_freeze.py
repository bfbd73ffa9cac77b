from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gate.scoring import read_test_split
from ray_jobs.data.freeze import write_test_parquet
from ray_jobs.data.prepare import Split
from serve_app.inference.digests import split_digest

NAMES = ("negative", "positive")


def test_round_trip(tmp_path: Path) -> None:
    ids, texts = [f"n{i}" for i in range(25_000)], [f"text {i}\n“é” \U0001f600" for i in range(25_000)]
    labels = np.arange(25_000) % 2
    split = Split(ids, texts, labels, split_digest(ids, texts, labels, NAMES))
    path = tmp_path / "folder" / "test.parquet"
    write_test_parquet(split, NAMES, path)
    table = pq.read_table(path)
    assert table.schema.names == ["id", "text", "label"]
    assert table.schema.types == [pa.string(), pa.string(), pa.int32()]
    assert json.loads(table.schema.metadata[b"trialgate"]) == {"digest": split.digest, "labels": list(NAMES)}
    read = [table.column(name).to_pylist() for name in table.schema.names]
    assert read == [ids, texts, labels.tolist()]
    assert split_digest(*read, NAMES) == split.digest
    assert [file.name for file in path.parent.iterdir()] == ["test.parquet"]


def test_slices_reach_the_gate(tmp_path: Path) -> None:
    ids, texts, labels = ["b", "a", "c"], ["one", "two", "three"], np.array([0, 1, 1])
    slices = {"topic": ["film", "food", "film"], "language": ["en", "de", "missing"]}
    split = Split(ids, texts, labels, split_digest(ids, texts, labels, NAMES, slices), slices)
    write_test_parquet(split, NAMES, tmp_path / "test.parquet")
    schema = pq.read_schema(tmp_path / "test.parquet")
    assert schema.names == ["id", "text", "label", "slice:topic", "slice:language"]
    assert schema.field("slice:topic") == pa.field("slice:topic", pa.string(), nullable=False)
    found = read_test_split(tmp_path / "test.parquet", split.digest)
    assert found.texts == ["two", "one", "three"]
    assert found.slices == {"topic": ["food", "film", "film"], "language": ["de", "en", "missing"]}


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    broken = Split(["a"], ["half an emoji \ud83d"], np.zeros(1, int), "digest")
    with pytest.raises(UnicodeEncodeError):
        write_test_parquet(broken, NAMES, tmp_path / "test.parquet")
    assert list(tmp_path.iterdir()) == []
