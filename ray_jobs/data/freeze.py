"""Writes the test split as the file that the gate scores from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.data.prepare import Split
from serve_app.inference.digests import SLICE_PREFIX

METADATA_KEY = b"trialgate"


def write_test_parquet(split: Split, label_names: Sequence[str], path: str | Path) -> None:
    """Writes ``split`` to the local ``path``: columns id, text (string) and label (int32, index into ``label_names``),
    and a string column ``slice:NAME`` for every slice column.

    The schema's metadata hold under ``trialgate`` the JSON ``{"digest": ..., "labels": [...]}``. Rows keep their
    order. The file appears under its name only when it is complete; missing folders are made.
    """
    described = json.dumps({"digest": split.digest, "labels": list(label_names)})
    columns = {"id": pa.string(), "text": pa.string(), "label": pa.int32()}
    columns |= {SLICE_PREFIX + column: pa.string() for column in split.slices}
    schema = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()],
        metadata={METADATA_KEY: described.encode()},
    )
    # Chunked arrays: one string array holds at most 2 GiB of text.
    batches = [
        pa.record_batch(
            [
                split.ids[start:end],
                split.texts[start:end],
                pa.array(split.labels[start:end], pa.int32()),
                *(values[start:end] for values in split.slices.values()),
            ],
            schema=schema,
        )
        for start, end in ((start, start + 10_000) for start in range(0, len(split), 10_000))
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(pa.Table.from_batches(batches, schema), unfinished, compression="zstd")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
