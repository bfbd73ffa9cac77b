"""What every job's command line shares: exit codes, signals, progress lines, and one JSON document on stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import fsspec

from configs.exit_codes import ExitCode
from configs.loading import ConfigError
from gate.decision import GateUsageError
from ray_jobs.cluster import ClusterUnavailable
from ray_jobs.data.rows import DataError
from serve_app.mlflow_client import TrackingUnavailable


class JobFailed(RuntimeError):
    """The job itself failed, for a reason that the message tells: exit code 1 without a traceback."""


class StorageUnavailable(ConnectionError):
    """``search.storage`` cannot be written."""


@dataclass(frozen=True)
class Result:
    """What a command ends with: its exit code and its JSON document."""

    exit_code: ExitCode
    document: dict[str, Any]


def say(line: str) -> None:
    """One line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config``, ``--set``, ``--json``, ``--json-file``."""
    parser.add_argument("--config", required=True, metavar="FILE", help="a shipped config's bare name, a path or a URL")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="change one setting, for example training.epochs=2; may be given several times",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print exactly one JSON document on standard output")
    parser.add_argument("--json-file", metavar="PATH_OR_URL", help="write the JSON document there")


def run_command(body: Callable[[], Result], args: argparse.Namespace) -> int:
    """Runs ``body`` and returns its exit code. Users' mistakes give a message, bugs a traceback; both on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)
    with _clean_stdout() as stdout:
        try:
            result = body()
            document = json.dumps(result.document, indent=2, allow_nan=False, default=str)
            if args.json_file:
                with fsspec.open(args.json_file, "w", encoding="utf-8") as file:
                    file.write(document + "\n")
            if args.json:
                stdout(document + "\n")
            return int(result.exit_code)
        except KeyboardInterrupt:
            say("interrupted")
            return int(ExitCode.INTERRUPTED)
        except (ConfigError, DataError, GateUsageError) as error:
            say(f"error: {error}")
            return int(ExitCode.USAGE)
        except (TrackingUnavailable, ClusterUnavailable, StorageUnavailable) as error:
            say(f"error: {error}")
            return int(ExitCode.UNREACHABLE)
        except JobFailed as error:
            say(f"error: {error}")
            return int(ExitCode.FAILED)
        except Exception:  # noqa: BLE001 - a bug: shown whole, with the exit code that says so
            traceback.print_exc()
            return int(ExitCode.FAILED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: what runs from here on is the clean end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _clean_stdout() -> Iterator[Callable[[str], None]]:
    """Sends whatever libraries and child processes print to stderr; yields the writer to the real stdout."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)

    def write(text: str) -> None:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as file:
            file.write(text)

    try:
        yield write
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
