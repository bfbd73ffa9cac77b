from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def test_failure_leaves_no_file(tmp_path: Path) -> None:
    broken = Split(["a"], ["half an emoji \ud83d"], np.zeros(1, int), "digest")
    with pytest.raises(UnicodeEncodeError):
        write_test_parquet(broken, NAMES, tmp_path / "test.parquet")
    assert list(tmp_path.iterdir()) == []
