"""Small input files in every format."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.batch.inputs import InputFile, find_files
from ray_jobs.batch.parts import Columns

COLUMNS = Columns("text", "prediction")
ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".jsonl.gz")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> InputFile:
    """A file with the ``rows``, which have the same keys, in the format of its ending."""
    kind, packed = path.name.removesuffix(".gz").rpartition(".")[2], path.name.endswith(".gz")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=7)
    else:
        with (gzip.open if packed else open)(path, "wt", encoding="utf-8", newline="") as file:
            if kind == "jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
    return find_files([str(path)])[0]
