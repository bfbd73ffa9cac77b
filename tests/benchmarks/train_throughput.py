"""Texts per second of our trainer and of the Hugging Face Trainer: same model, data, epochs, batch and learning rate.

    python -m tests.benchmarks.train_throughput                                       # built-in texts, random weights
    python -m tests.benchmarks.train_throughput --train a.parquet b.parquet --checkpoint DIR      # columns text, label

The contenders take turns in one process, so that whatever else the machine does meets all of them alike:

- ours: ``ray_jobs.training.Trainer`` with its defaults; batches in random order, packed, never padded.
- defaults: ``transformers.Trainer`` as it comes (fp32, random order, every batch padded to its longest text).
- best: the same with bf16, batches grouped by length, and the fused optimizer.

All three take 32 texts per step, no warm-up and a linear decay to 0; every round has another seed of the order and of
dropout, so that the F1s show what is chance. What the Hugging Face Trainer would spend on checkpoints and progress bars
is switched off. Time is that of training alone, without start-up and validation; the processor time is that of the
whole process, so it hardly depends on what else runs on the machine.

Below each table stands how much of the matrix rate our trainer reaches: the products of the model's layers and of its
attention over the texts' real tokens (filler counts as waste), forward and twice that backward, against square bf16
products timed right before; per second of processor time, on a GPU per second. Memory-bound work (norms, dropout, the
optimizer) counts as time alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
import transformers
from transformers import (
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from configs.model import TrainingConfig
from ray_jobs.data.generator import generate
from ray_jobs.training import LabelledTokens, Trainer
from serve_app.inference.checkpoint import import_tokenizer, read_checkpoint
from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.families import new_distilbert
from serve_app.inference.metrics import F1Definition, confusion_matrix, f1_from_confusion
from serve_app.inference.tokenizing import TextTokenizer, learn_wordpiece, tokenize

NAMES = ("negative", "positive")
POSITIVE = F1Definition("binary", "positive")
CONTENDERS = ("ours", "defaults", "best")
BEST = {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}


@dataclass(frozen=True)
class Task:
    """One data set with the weights that every contender begins with."""

    name: str
    train: LabelledTokens
    validation: LabelledTokens
    tokenizer: TextTokenizer
    model: PackedDistilBert


@dataclass(frozen=True)
class Result:
    """One training run of one contender."""

    seconds: float
    processor_seconds: float
    f1: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    everybody: dict[str, Callable[[Task, int], Result]] = {
        "ours": lambda task, seed: train_ours(task, options, seed),
        "defaults": lambda task, seed: train_hugging_face(task, options, seed, {}),
        "best": lambda task, seed: train_hugging_face(task, options, seed, BEST),
    }
    contenders = {name: everybody[name] for name in options.contenders}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, list[Result]]] = {}
    for task in tasks(options):
        rate = matrix_rate(device)
        results: dict[str, list[Result]] = {name: [] for name in contenders}
        for turn in range(options.rounds):
            order = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
            for name in order:
                results[name].append(contenders[name](task, options.seed + turn))
                print(f"  {task.name}, {name}: {results[name][-1]}", file=sys.stderr)
        found[task.name] = results
        report(task, results, options.epochs)
        if "ours" in results:
            gpu = device.type == "cuda"
            seconds = min(run.seconds if gpu else run.processor_seconds for run in results["ours"])
            reached = options.epochs * training_flops(task) / seconds
            print(f"\nours: {reached / 1e12:.3g} of {rate / 1e12:.3g} TFLOP/s, {reached / rate:.0%} of the matrix rate")
    if options.json:
        Path(options.json).write_text(json.dumps(found, default=asdict, indent=1), encoding="utf-8")
    return 0


def matrix_rate(device: torch.device) -> float:
    """FLOP per second (on a processor: of its time) of a square bf16 product, the best of five."""
    gpu = device.type == "cuda"
    size, clock = (8192, time.perf_counter) if gpu else (2048, time.process_time)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):  # the first one compiles its kernel
        began = clock()
        (left @ right)[0, 0].item()  # waits for a GPU
        seconds.append(clock() - began)
    return 2 * size**3 / min(seconds[1:])


def training_flops(task: Task) -> float:
    """Floating-point operations of one epoch's matrix products: those of the forward pass, and twice as many back.

    The last layer computes queries, attention and feed-forward of the first token of each text alone.
    """
    sizes, lengths = task.model.config, task.train.tokens.lengths.astype(np.float64)
    width, wide = sizes.width, sizes.feed_forward_width
    tokens, texts, pairs = lengths.sum(), len(lengths), (lengths**2).sum()
    asking = 2 * (2 * width**2 + 2 * width * wide)  # query and output, two layers of the feed-forward
    asked = 2 * 2 * width**2  # key and value
    whole = tokens * (asking + asked) + 4 * width * pairs
    last = texts * asking + tokens * asked + 4 * width * tokens
    head = texts * 2 * (width**2 + width * len(NAMES))
    return float(3 * ((sizes.layers - 1) * whole + last + head))


def tasks(options: argparse.Namespace) -> list[Task]:
    """The data sets: the given files, or short and long built-in texts."""
    split = (options.texts, options.validation_texts)
    if options.train:
        return [_task(Path(path).stem, *_read(path, sum(split)), options) for path in options.train]
    texts, labels = generate(sum(split), 1)
    pieces, of_piece = generate(40 * sum(split), 2, label_noise=0.0)
    sides = [iter([text for text, label in zip(pieces, of_piece, strict=True) if label == side]) for side in (0, 1)]
    long = [" ".join(next(sides[label]) for _ in range(12)) for label in labels]
    return [_task("short", texts, labels, options), _task("long", long, labels, options)]


def train_ours(task: Task, options: argparse.Namespace, seed: int) -> Result:
    """Our trainer, measured in its epochs' own reports; ``seed``: of the order of the texts and of dropout."""
    config = TrainingConfig(
        epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.learning_rate, weight_decay=0.0,
        warmup_ratio=0.0, max_batch_tokens=options.max_batch_tokens, seed=seed,
    )  # fmt: skip
    trainer = Trainer(
        copy.deepcopy(task.model), task.train, task.validation, config, label_names=NAMES, f1=POSITIVE,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    began = time.process_time()
    reports = trainer.run()
    busy = time.process_time() - began
    seconds = sum(len(task.train) / report.train_texts_per_second for report in reports)
    # Validation is in the processor time of the whole run: taken out by its share of the wall time.
    return Result(seconds, busy * seconds / sum(report.seconds for report in reports), reports[-1].validation_f1)


def train_hugging_face(task: Task, options: argparse.Namespace, seed: int, settings: dict[str, Any]) -> Result:
    """The Hugging Face Trainer with ``settings`` over its defaults."""
    model = DistilBertForSequenceClassification(DistilBertConfig(**task.model.config.as_stock()))
    model.set_attn_implementation("sdpa")
    model.load_state_dict(task.model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        for file, content in task.tokenizer.files.items():
            (Path(folder) / file).write_bytes(content)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder, num_train_epochs=options.epochs, per_device_train_batch_size=options.batch_size,
                learning_rate=options.learning_rate, use_cpu=not torch.cuda.is_available(), save_strategy="no",
                report_to="none", disable_tqdm=True, seed=seed, dataloader_pin_memory=torch.cuda.is_available(),
                **settings,
            ),
            train_dataset=_rows(task.train),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        began, busy = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        # With its labels: grouped by length, it shuffles what it predicts too.
        found = trainer.predict(_rows(task.validation))
        answers, labels = np.argmax(found.predictions, axis=-1), np.asarray(found.label_ids)
    f1 = f1_from_confusion(confusion_matrix(labels, answers, len(NAMES)), POSITIVE, NAMES)
    return Result(seconds, busy, f1)


def report(task: Task, results: dict[str, list[Result]], epochs: int) -> None:
    """Prints the table of one task: medians over the rounds, ratios within each round."""
    texts, lengths = len(task.train), task.train.tokens.lengths
    print(f"\n{task.name}: {texts} texts, {lengths.mean():.0f} tokens on average, {epochs} epochs")
    print("| | texts/s | texts per processor second | ours is faster by | (processor) | validation F1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        pairs = list(zip(runs, results.get("ours", runs), strict=True))
        print(
            f"| {name} "
            f"| {statistics.median(texts * epochs / run.seconds for run in runs):.1f} "
            f"| {statistics.median(texts * epochs / run.processor_seconds for run in runs):.1f} "
            f"| {statistics.median(run.seconds / our.seconds for run, our in pairs):.2f}x "
            f"| {statistics.median(run.processor_seconds / our.processor_seconds for run, our in pairs):.2f}x "
            f"| {' '.join(f'{run.f1:.3f}' for run in runs)} |"
        )
    sys.stdout.flush()


def _task(name: str, texts: Sequence[str], labels: Sequence[int], options: argparse.Namespace) -> Task:
    longest = options.max_length
    torch.manual_seed(options.seed)
    if options.checkpoint:
        tokenizer, checkpoint = import_tokenizer(options.checkpoint), read_checkpoint(options.checkpoint)
        model = new_distilbert(
            checkpoint.weights, labels=NAMES, attention_dropout=options.attention_dropout, **checkpoint.sizes
        )
    else:
        tokenizer = learn_wordpiece(texts, 30_522, longest)
        width = 768 if options.size == "base" else 384
        model = new_distilbert(
            layers=6, width=width, heads=12, feed_forward_width=4 * width, vocabulary_size=30_522, max_length=longest,
            labels=NAMES, attention_dropout=options.attention_dropout,
        )  # fmt: skip
    tokens, classes = tokenize(tokenizer, texts, longest).tokens, np.array(labels)
    splits = [
        LabelledTokens(tokens.select(places), classes[places])
        for places in np.split(np.arange(len(texts)), [options.texts])
    ]
    return Task(name, splits[0], splits[1], tokenizer, model)


def _read(path: str, count: int) -> tuple[list[str], list[int]]:
    table = pyarrow.parquet.read_table(path, columns=["text", "label"])
    taken = table.take(np.random.default_rng(0).permutation(len(table))[:count])
    return taken["text"].to_pylist(), [int(label) for label in taken["label"].to_pylist()]


def _rows(data: LabelledTokens) -> Any:  # a list, which the Trainer takes as a Dataset
    return [
        {"input_ids": ids.tolist(), "labels": int(label)} for ids, label in zip(data.tokens, data.labels, strict=True)
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_throughput", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--train", nargs="+", metavar="FILE.parquet", help="data sets, with columns text and label 0/1")
    parser.add_argument("--checkpoint", help="folder or hub id of a DistilBERT (default: random weights, MiniLM-size)")
    parser.add_argument("--size", choices=("minilm", "base"), default="minilm",
                        help="random weights of width 384, or of 768 (default %(default)s)")  # fmt: skip
    parser.add_argument("--attention-dropout", type=float, default=0.1,
                        help="0 lets a GPU's kernel take whole rows (default %(default)s)")  # fmt: skip
    parser.add_argument("--texts", type=int, default=256, help="training texts, count (default %(default)s)")
    parser.add_argument("--validation-texts", type=int, default=256, help="count (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="count (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every contender (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="texts per step (default %(default)s)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens; longer texts are cut (default 256)")
    parser.add_argument("--max-batch-tokens", type=int, default=TrainingConfig().max_batch_tokens,
                        help="of our trainer (default: its own, %(default)s)")  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="peak (default %(default)s)")
    parser.add_argument("--threads", type=int, help="intra-op threads (default: torch's)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights, and of the first round (default %(default)s)"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="default: all")
    parser.add_argument("--json", help="file for every single run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
