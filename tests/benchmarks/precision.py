"""What a precision costs and gains: texts per second of one core, and how far the answers are from those of fp32.

    python -m tests.benchmarks.precision MODEL_FOLDER --texts FILE.parquet    # columns text and, for accuracy, label

Batches have at most 512 tokens, in the order of the texts, as the service forms them. Processor time is counted, not
wall-clock time, so what else the machine does matters little. The table goes to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet
import torch

from serve_app.inference.engine import Engine
from serve_app.inference.int8 import has_int8
from serve_app.inference.packing import plan_batches

_BATCH_TOKENS, _BATCH_TEXTS = 512, 64
_WARM_UP = 3  # batches


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    table = pyarrow.parquet.read_table(options.texts)
    chosen = np.random.default_rng(options.seed).permutation(table.num_rows)[: options.count]
    texts = [table["text"][int(row)].as_py() for row in chosen]
    labels = table["label"].to_numpy()[chosen] if "label" in table.column_names else None
    torch.set_num_threads(1)
    print(f"{len(texts)} texts, one core, torch {torch.__version__}\n")
    print("| precision | texts/s | times fp32 | largest change | mean change | other answers | right answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base: tuple[np.ndarray, float] | None = None
    for precision in ["fp32", "bf16"] + ["int8"] * has_int8():
        found, rate = _measured(Engine.load(options.model, precision=precision), texts)
        base = base or (found, rate)
        change, answers = np.abs(found - base[0]), found.argmax(1)
        right = "" if labels is None else f"{np.mean(answers == labels):.1%}"
        print(f"| {precision} | {rate:.1f} | {rate / base[1]:.2f} | {change.max():.4f} | {change.mean():.5f} "
              f"| {np.sum(answers != base[0].argmax(1))} | {right} |", flush=True)  # fmt: skip
    return 0


def _measured(engine: Engine, texts: Sequence[str]) -> tuple[np.ndarray, float]:
    """Probabilities [texts, classes] and texts per second of processor time."""
    tokens = engine.tokenize(texts).tokens
    batches = plan_batches(tokens.lengths, _BATCH_TOKENS, _BATCH_TEXTS)
    for batch in batches[:_WARM_UP]:
        engine.forward([tokens[int(place)] for place in batch])
    found = np.empty((len(tokens), len(engine.labels)), dtype=np.float32)
    began = time.process_time()
    for batch in batches:
        found[batch] = engine.forward([tokens[int(place)] for place in batch])
    return found, len(tokens) / (time.process_time() - began)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.precision", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", metavar="MODEL_FOLDER", help="a saved model")
    parser.add_argument(
        "--texts", required=True, metavar="FILE.parquet", help="column text and, if there is one, label"
    )
    parser.add_argument("--count", type=int, default=1000, help="texts, drawn at random (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
