"""What every job's command line shares: its arguments and its lines for people."""

from __future__ import annotations

import argparse
import sys

from configs.exit_codes import EXIT_CODES, CommandFailed, Unreachable


class AllTrialsFailed(CommandFailed):
    """No trial of a search gave a model."""


class StorageUnavailable(Unreachable):
    """``search.storage``, or the input or output of a batch job, cannot be read or written."""


def say(line: str) -> None:
    """One line for people, on standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def job_parser(program: str, description: str, *, config_required: bool = True) -> argparse.ArgumentParser:
    """A parser with ``--config``, ``--set``, ``--json`` and ``--json-file``."""
    parser = argparse.ArgumentParser(prog=program, description=description, epilog=EXIT_CODES)
    parser.add_argument(
        "--config", required=config_required, metavar="FILE", help="a shipped config's bare name, a path or a URL"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, for example training.epochs=2; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print exactly one JSON document on standard output")
    parser.add_argument("--json-file", metavar="PATH_OR_URL", help="write the JSON document there")
    return parser
