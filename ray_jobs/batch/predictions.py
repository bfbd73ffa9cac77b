"""The rows of a part with their predictions, as bytes of an output file: in the input's format, its columns kept."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ray_jobs.batch.parts import LINE, Part

_DIGITS = 7  # of a probability: what a float32 holds


@dataclass(frozen=True)
class Predictions:
    """``places``: rows of the part that have one, ascending. ``probabilities``: float32 [rows, classes], in the order
    of ``labels``. ``truncated``: bool [rows]."""

    places: Sequence[int]
    labels: tuple[str, ...]
    probabilities: np.ndarray
    truncated: np.ndarray
    version: str

    @property
    def best(self) -> np.ndarray:
        """The most probable class of every row, int64 [rows]."""
        return self.probabilities.argmax(axis=1)


def render(part: Part, predictions: Predictions, file_format: str, name: str) -> bytes:
    """The predicted rows of ``part``. ``name``: what the new columns begin with, or the new key of JSON Lines."""
    rows = part.table.take(pa.array(predictions.places, pa.int64()))
    if file_format == "jsonl":
        return _json_lines(rows.column(LINE).to_pylist(), predictions, name)
    for column, values in _columns(predictions, name).items():
        rows = rows.append_column(column, values)
    buffer = io.BytesIO()
    if file_format == "parquet":
        # The `datasets` library writes what columns it knows into the metadata, and refuses a file with others.
        metadata = {key: value for key, value in (rows.schema.metadata or {}).items() if key != b"huggingface"}
        pq.write_table(rows.replace_schema_metadata(metadata), buffer, compression="zstd")
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if file_format == "tsv" else ",")
        pyarrow.csv.write_csv(rows, buffer, options)
    return buffer.getvalue()


def _columns(predictions: Predictions, name: str) -> dict[str, pa.Array]:
    best, probabilities = predictions.best, predictions.probabilities
    return {
        f"{name}_label": pa.array([predictions.labels[index] for index in best], pa.string()),
        f"{name}_score": pa.array(probabilities[np.arange(len(best)), best], pa.float32()),
        **{
            f"{name}_probability_{label}": pa.array(probabilities[:, index], pa.float32())
            for index, label in enumerate(predictions.labels)
        },
        f"{name}_truncated": pa.array(predictions.truncated, pa.bool_()),
        f"{name}_model_version": pa.array([predictions.version] * len(best), pa.string()),
    }


def _json_lines(lines: Sequence[str], predictions: Predictions, name: str) -> bytes:
    """Each record as it was, to the last digit, with one key more: what ``POST /predict`` answers."""
    written = []
    for row, (line, best) in enumerate(zip(lines, predictions.best.tolist(), strict=True)):
        probabilities = [round(float(value), _DIGITS) for value in predictions.probabilities[row]]
        answer = {
            "label": predictions.labels[best],
            "score": probabilities[best],
            "probabilities": dict(zip(predictions.labels, probabilities, strict=True)),
            "truncated": bool(predictions.truncated[row]),
            "model_version": predictions.version,
        }
        written.append(f"{line.removesuffix('}')}, {json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}}}\n")
    return "".join(written).encode("utf-8")
