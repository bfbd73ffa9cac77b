"""Exit codes of every command, and the errors that stand for them.

``serve_app.console.run_command`` is the one place that maps errors to codes: an error of any part that has one of these
bases ends a command with that code and its message, without a traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means; the same for all commands."""

    OK = 0
    FAILED = 1  # all trials failed, or a bug
    USAGE = 2  # bad usage, bad config, or a run, version or model that does not exist
    BLOCKED = 3  # blocked by the gate
    UNREACHABLE = 4  # MLflow, Ray or storage cannot be reached
    INTERRUPTED = 130  # Ctrl-C or SIGTERM


EXIT_CODES = (
    "exit codes: 0 done; 1 failed; 2 bad usage, bad config, or a run, version or model that does not exist; 3 blocked "
    "by the gate; 4 MLflow, Ray or storage cannot be reached; 130 interrupted"
)  # for every command's --help


class UsageError(ValueError):
    """A user's mistake, in a message that names the field, file or run and the fix."""


class Unreachable(ConnectionError):
    """MLflow, Ray or storage cannot be reached; the message says which and where."""


class CommandFailed(RuntimeError):
    """The command could not do what it was asked for, and the message says all there is to know."""
