"""Requests per second and latency of our service, and of what people would use instead, on one model and one machine.

    python -m tests.benchmarks.serving                                          # built-in texts
    python -m tests.benchmarks.serving --sentences a.parquet --reviews b.parquet   # column text
    python -m tests.benchmarks.serving --rounds 2 --seconds 5                   # there and back: machines drift
    python -m tests.benchmarks.serving --overload 30                            # ours alone, at four times its capacity
    python -m tests.benchmarks.serving --overload 30 --settings cpus_per_replica=1  # with one core for forward passes

One DistilBERT-base (random weights: speed does not depend on them), in a saved-model folder that every server loads.
The servers are those of ``tests.benchmarks.serving_servers``; they run one after the other, and the load comes from a
process of its own (``serving_load``) on the same cores. ``raw`` is our engine without HTTP: batches of 32 texts, a pass
on each core at once or one at a time with all cores, and single texts with all cores, which is the bare forward pass
that a lone request is measured against. ``raw-int8`` and ``ours-int8`` are the same with serving.precision int8.

The table goes to standard output as Markdown, the picture to ``--picture``, everything to ``--json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import torch

from ray_jobs.data.generator import generate
from serve_app.inference.engine import Engine
from serve_app.inference.families import new_distilbert
from serve_app.inference.metrics import F1Definition
from serve_app.inference.packing import pack
from serve_app.inference.saved_model import ModelInfo, write_model_folder
from serve_app.inference.tokenizing import learn_wordpiece, tokenize
from tests.benchmarks.serving_overload import overload_table, overloaded

OURS, OURS_INT8 = "ours", "ours-int8"
CONTENDERS = (OURS, OURS_INT8, "serve-batch", "fastapi", "tutorial", "litserve")
CONCURRENCIES = (1, 8, 32, 64)
_START_S = 180.0
_SETTLE_S = 15.0  # Ray goes on starting processes for a while after the first answer
_BATCH = 32
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    print(f"{len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tg-bench-") as temporary:
        kinds = {"sentences": read_sentences(options.sentences), "reviews": _reviews(options)}
        kinds = {name: kinds[name] for name in options.kinds}
        folder = make_model(Path(temporary) / "model", [text for texts in kinds.values() for text in texts])
        files = {name: _write(Path(temporary) / f"{name}.json", texts) for name, texts in kinds.items()}
        if options.overload:
            rows = overload(folder, files, options)
        else:
            rows = mean([one_round(number, folder, kinds, files, options) for number in range(options.rounds)])
    print(overload_table(rows) if options.overload else table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.picture and not options.overload:
        draw(rows, options.picture)
    return 0


def make_model(folder: Path, texts: Sequence[str], max_length: int = 256) -> Path:
    """A saved-model folder of DistilBERT-base's size, with random weights and a vocabulary of ``texts``."""
    torch.manual_seed(0)
    tokenizer = learn_wordpiece(texts, 30_522, max_length)
    labels = ("negative", "positive")
    model = new_distilbert(
        layers=6, width=768, heads=12, feed_forward_width=3072, vocabulary_size=30_522, max_length=512, labels=labels
    ).eval()
    sample = tokenize(tokenizer, texts[:16], max_length).tokens
    with torch.inference_mode():
        logits = model(pack([sample[place] for place in range(len(sample))])).numpy()
    info = ModelInfo(labels, max_length, F1Definition("binary", "positive"))
    write_model_folder(folder, model, tokenizer.files, info, sample, logits)
    return folder


def raw(folder: Path, kind: str, texts: Sequence[str], precision: str = "auto", batches: int = 24) -> list[Row]:
    """Our engine without HTTP: texts per second in batches, a pass on each core at once, with the median of single
    texts on all cores; and in batches one at a time on all cores."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    engine = Engine.load(folder, precision=precision)
    tokens = engine.tokenize(texts).tokens
    drawn = np.random.default_rng(0).choice(len(tokens), (batches, _BATCH))
    parts = [[tokens[int(place)] for place in row] for row in drawn]

    def compute(part: list[np.ndarray]) -> None:
        engine.forward(part)

    def one_thread() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)

    alone = [[tokens[place]] for place in range(min(60, len(tokens)))]
    for part in alone + parts:  # the processor's clock rises, and products are compiled for what was never computed
        compute(part)
    single_s = [_seconds(partial(map, compute, [text])) for text in alone]
    in_turn = drawn.size / _seconds(lambda: map(compute, parts))
    with ThreadPoolExecutor(cores, initializer=one_thread) as lanes:
        list(lanes.map(compute, parts[:cores]))
        at_once = drawn.size / _seconds(lambda: lanes.map(compute, parts))
    of_all = {"contender": "raw-int8" if precision == "int8" else "raw", "kind": kind, "errors": 0}
    none = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"))
    lone = none | {"p50_ms": float(np.median(single_s)) * 1000}
    return [
        {**of_all, "load": "batches of 32", "requests_per_s": at_once, **lone},
        {**of_all, "load": "batches of 32, one at a time", "requests_per_s": in_turn, **none},
    ]


def _seconds(passes: Callable[[], Iterator[None]]) -> float:
    began = time.perf_counter()
    for _ in passes():
        pass
    return time.perf_counter() - began


def one_round(
    number: int, folder: Path, kinds: dict[str, list[str]], files: dict[str, Path], options: argparse.Namespace
) -> list[Row]:
    """The engine without HTTP and all contenders, every second time the other way round."""
    precisions = ["auto"] + ["int8"] * (OURS_INT8 in options.contenders)
    steps: list[Callable[[], list[Row]]] = [
        partial(raw, folder, kind, texts, precision) for precision in precisions for kind, texts in kinds.items()
    ]
    steps += [partial(measure, contender, folder, files, options) for contender in options.contenders]
    return [row for step in (reversed(steps) if number % 2 else steps) for row in step()]


def mean(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """Of all rounds, row by row, percentiles too; errors are added up. None where no round has a figure."""
    of_row: dict[tuple[str, ...], list[Row]] = {}
    for row in (row for rows in rounds for row in rows):
        of_row.setdefault((row["contender"], row["kind"], row["load"]), []).append(row)

    def of(rows: Sequence[Row], name: str) -> float | None:
        known = [row[name] for row in rows if row[name] is not None]
        return float(np.mean(known)) if known else None

    figures = ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")
    return [
        rows[0] | {name: of(rows, name) for name in figures} | {"errors": sum(row["errors"] for row in rows)}
        for rows in of_row.values()
    ]


def measure(contender: str, folder: Path, files: dict[str, Path], options: argparse.Namespace) -> list[Row]:
    """Closed loops, and an open one at half of the most that they reached."""
    rows = []
    with served(contender, folder, options) as (url, _):
        for kind, file in files.items():
            reached = 0.0
            for concurrency in options.concurrency:
                found = load(url, file, options, f"--concurrency={concurrency}")
                reached = max(reached, found["requests_per_s"])
                rows.append(_row(contender, kind, f"{concurrency}", found))
            found = load(url, file, options, f"--rate={reached / 2:.2f}")
            rows.append(_row(contender, kind, "open, at half", found))
        if contender in (OURS, OURS_INT8):
            for kind, file in files.items():
                found = load(url, file, options, "--concurrency=2", f"--batch={_BATCH}")
                rows.append(_row(contender, kind, "2 x /batch_predict of 32", found))
    return rows


def overload(folder: Path, files: dict[str, Path], options: argparse.Namespace) -> list[Row]:
    """Ours at four times its capacity, with each kind of texts."""
    with served(OURS, folder, options) as (url, server):
        return [
            overloaded(url, server, kind, lambda *more, file=file: load(url, file, options, *more), options.overload)
            for kind, file in files.items()
        ]


@contextlib.contextmanager
def served(contender: str, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """The contender's server, answering; its whole process tree ends with the context."""
    port = _free_port()
    command = [sys.executable, "-m", "tests.benchmarks.serving_servers", contender, str(folder), str(port)]
    if contender in (OURS, OURS_INT8):
        command += options.settings
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        process = psutil.Process(server.pid)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for_answer(url, server, log.name)
            time.sleep(_SETTLE_S)
            yield url, process
        finally:
            children = process.children(recursive=True)
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(15)
            for child in [process, *children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def load(url: str, texts: Path, options: argparse.Namespace, *more: str) -> Row:
    """What the load generator measured."""
    command = [sys.executable, "-m", "tests.benchmarks.serving_load", url, f"--texts={texts}",
               f"--seconds={options.seconds}", *more]  # fmt: skip
    print(" ".join(command[3:]), file=sys.stderr)
    found: Row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown. The last columns: requests per second of ours over this row's, same texts and load."""
    own = {name: {(row["kind"], row["load"]): row["requests_per_s"] for row in rows if row["contender"] == name}
           for name in (OURS, OURS_INT8)}  # fmt: skip
    own = {name: {load: rate for load, rate in found.items() if not load[1].startswith("open")}  # each at its own rate
           for name, found in own.items() if found}  # fmt: skip
    lines = [f"| texts | load | server | requests/s | p50 ms | p95 ms | p99 ms | errors | {' | '.join(own)} |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |" + " --- |" * len(own)]  # fmt: skip
    for row in sorted(rows, key=lambda row: (row["kind"] != "sentences", row["load"].split(",")[0].zfill(20))):
        rates = [found.get((row["kind"], row["load"])) for found in own.values()]
        faster = [f"{rate / row['requests_per_s']:.1f}x" if rate and row["requests_per_s"] else "" for rate in rates]
        times = [_three_digits(row[name]) for name in ("p50_ms", "p95_ms", "p99_ms")]
        lines.append(
            f"| {row['kind']} | {row['load']} | {row['contender']} | {row['requests_per_s']:.1f} "
            f"| {' | '.join(times)} | {row['errors']} | {' | '.join(faster)} |"
        )
    return "\n".join(lines)


def _three_digits(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}" if number < 100 else f"{number:.0f}"


def draw(rows: Sequence[Row], path: str) -> None:
    """Requests per second and 99th percentile over concurrency, a line per server."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure = Figure(figsize=(10, 3.6 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, (rate, tail) in zip(kinds, grid, strict=True):
        for contender in dict.fromkeys(row["contender"] for row in rows if not row["contender"].startswith("raw")):
            own = [row for row in rows
                   if row["contender"] == contender and row["kind"] == kind and row["load"].isdigit()]  # fmt: skip
            places = [int(row["load"]) for row in own]
            rate.plot(places, [row["requests_per_s"] for row in own], "o-", label=contender)
            tail.plot(places, [row["p99_ms"] for row in own], "o-", label=contender)
        limit = next(row["requests_per_s"] for row in rows if row["contender"] == "raw" and row["kind"] == kind)
        rate.axhline(limit, color="gray", linestyle="--", label="our engine without HTTP")
        rate.set(title=f"{kind}: requests per second", xlabel="concurrent clients", xscale="log", ylim=(0, None))
        tail.set(title=f"{kind}: 99th percentile, ms", xlabel="concurrent clients", xscale="log", yscale="log")
        for axes in (rate, tail):
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=120)


def _row(contender: str, kind: str, how: str, found: Row) -> Row:
    errors = sum(count for status, count in found["statuses"].items() if status != "200")
    kept = {name: found[name] for name in ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")}
    return {"contender": contender, "kind": kind, "load": how, **kept, "errors": errors}


def _wait_for_answer(url: str, server: subprocess.Popen[bytes], log: str) -> None:
    body, until = json.dumps({"text": "warm"}).encode(), time.monotonic() + _START_S
    problem: object = "it has ended"
    while time.monotonic() < until and server.poll() is None:
        request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=30).read()
            return
        except urllib.error.HTTPError as error:
            problem = f"{error} {error.read()[:500]!r}"
        except OSError as error:
            problem = error
        time.sleep(0.5)
    said = Path(log).read_text(encoding="utf-8", errors="replace")[-3000:]
    raise SystemExit(f"{url} does not answer: {problem}\n{said}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_sentences(path: str | None) -> list[str]:
    """Of the Parquet file, or built-in ones."""
    return _read(path) if path else [text[:140] for text in generate(512, 0)[0]]


def _reviews(options: argparse.Namespace) -> list[str]:
    if options.reviews:
        return _read(options.reviews)
    texts = generate(4096, 1)[0]
    return [" ".join(texts[place : place + 8]) for place in range(0, 4096, 8)]


def _read(path: str, count: int = 512) -> list[str]:
    texts: list[str] = pyarrow.parquet.read_table(path, columns=["text"])["text"].slice(0, count).to_pylist()
    return texts


def _write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text(json.dumps(list(texts)), encoding="utf-8")
    return path


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sentences", metavar="FILE.parquet", help="short texts, column text")
    parser.add_argument("--reviews", metavar="FILE.parquet", help="long texts, column text; cut at 256 tokens")
    parser.add_argument("--kinds", nargs="+", choices=("sentences", "reviews"), default=["sentences", "reviews"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=list(CONCURRENCIES))
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load (default %(default)s)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="of all contenders, every second one in reverse; the table has their means",
    )
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="only this: ours at four times its capacity")
    parser.add_argument("--settings", nargs="+", metavar="NAME=VALUE", default=[], help="of serving, for ours")
    parser.add_argument("--picture", metavar="FILE.png")
    parser.add_argument("--json", metavar="FILE.json")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.overload and options.rounds > 1):
        parser.error(f"--rounds is {options.rounds}, expected at least 1, and no more with --overload")
    return options


if __name__ == "__main__":
    sys.exit(main())
