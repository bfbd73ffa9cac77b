"""What a service that answers nobody takes from all else on its machine: Ray's processes, our replica and its board.

    python -m tests.benchmarks.idle_service [--sentences FILE.parquet] [--turns 6]

Our engine without HTTP computes beside a running service and beside the same one stopped (SIGSTOP), in turns.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.serving import OURS, make_model, raw, read_sentences, served


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.idle_service", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--sentences", metavar="FILE.parquet", help="short texts, column text (default: built-in ones)")
    parser.add_argument("--turns", type=int, default=6, help="of each (default %(default)s)")
    parser.add_argument("--settings", nargs="+", metavar="NAME=VALUE", default=[], help="of serving")
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns is {options.turns}, expected at least 1")
    texts = read_sentences(options.sentences)
    running, stopped = [], []
    with tempfile.TemporaryDirectory(prefix="tg-bench-") as temporary:
        folder = make_model(Path(temporary) / "model", texts)
        raw(folder, "sentences", texts)  # oneDNN compiles its kernels
        with served(OURS, folder, options) as (_, service):
            for turn in range(options.turns):
                running.append(raw(folder, "sentences", texts)[0])
                processes = [service, *service.children(recursive=True)]
                for process in processes:
                    process.send_signal(signal.SIGSTOP)
                try:
                    stopped.append(raw(folder, "sentences", texts)[0])
                finally:
                    for process in processes:
                        process.send_signal(signal.SIGCONT)
                time.sleep(2)  # of catching up
                print(f"turn {turn + 1} of {options.turns}", file=sys.stderr, flush=True)
    print("| the service | texts/s | a lone text, ms |\n| --- | --- | --- |")
    for name, rows in (("runs, idle", running), ("is stopped", stopped)):
        rate, lone = (statistics.median(row[figure] for row in rows) for figure in ("requests_per_s", "p50_ms"))
        print(f"| {name} | {rate:.1f} | {lone:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
