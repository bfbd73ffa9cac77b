"""What a command leaves behind for people and programs: standard output, the JSON document, and the exit code.

With ``--json`` standard output holds exactly one JSON document. Everything else that would go there, from libraries
and worker processes too, goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import IO, Any

import fsspec

from configs.exit_codes import CommandFailed, ExitCode, Unreachable, UsageError
from serve_app.mlflow_client import is_unreachable
from serve_app.refusals import refusal

logger = logging.getLogger(__name__)


def run_command(
    work: Callable[[], tuple[dict[str, Any], list[str], int]], *, as_json: bool = False, json_file: str | None = None
) -> int:
    """Runs ``work``, which returns a document, lines for people and an exit code, and puts them where they belong.

    The one place where errors become exit codes. A document is written for errors too: ``error`` and ``exit_code``.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for program in ("gate", "ray_jobs"):  # serve_app writes the service's log, which no command is
        logging.getLogger(program).setLevel(logging.INFO)
    with _output_kept_clean(as_json) as output, _interruptible():
        try:
            if json_file is not None:
                _refuse_unwritable(json_file)
            document, lines, code = work()
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code_of(error)
            message = describe(error)
            if code == ExitCode.FAILED and not isinstance(error, CommandFailed):
                logger.exception("failed")
            document, lines = {"error": message, "exit_code": int(code)}, []
            print(f"error: {message}", file=sys.stderr)
        text = json.dumps(document, indent=2, allow_nan=False)
        if json_file is not None:
            try:
                with fsspec.open(json_file, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
            except (OSError, ImportError, ValueError) as error:
                print(f"error: --json-file {json_file} cannot be written: {error}", file=sys.stderr)
                code = code or ExitCode.UNREACHABLE
        print(text if as_json else "\n".join(lines), file=output, end="\n" if as_json or lines else "")
        output.flush()
    return int(code)


def exit_code_of(error: BaseException) -> ExitCode:
    """The documented exit code for an error that ended a command."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, UsageError):
        return ExitCode.USAGE
    if isinstance(error, ConnectionError | TimeoutError) or is_unreachable(error) or refusal(error):
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED


def describe(error: BaseException) -> str:
    """The error in words."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, UsageError | Unreachable | CommandFailed):
        return str(error)
    refused = refusal(error)
    if refused is not None:
        return refused
    if exit_code_of(error) == ExitCode.UNREACHABLE:
        return f"MLflow or its storage was lost: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return f"{type(error).__name__}: {error}"


def _refuse_unwritable(url: str) -> None:
    """Tells before anything is done that the document could not be written afterwards."""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"--json-file {url}: {error}") from error
    if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder) or os.path.isdir(path):
            raise UsageError(
                f"--json-file {url}: expected a file in a folder that exists, found "
                f"{'a folder' if os.path.isdir(path) else f'no folder {folder}'}"
            )


@contextlib.contextmanager
def _output_kept_clean(as_json: bool) -> Iterator[IO[str]]:
    """Standard output as it was; with ``as_json`` what others print meanwhile goes to standard error."""
    if not as_json:
        yield sys.stdout
        return
    kept = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            descriptor = kept.fileno()
        except (OSError, ValueError, AttributeError):  # a test's or a notebook's replacement: no file behind it
            yield kept
            return
        kept.flush()
        original = os.dup(descriptor)
        os.dup2(2, descriptor)  # C libraries and child processes write to the file, not to sys.stdout
        try:
            with open(original, "w", encoding="utf-8") as output:
                yield output
                output.flush()
                os.dup2(original, descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.dup2(original, descriptor)
            raise


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a command like Ctrl-C does, so that what is half done is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
