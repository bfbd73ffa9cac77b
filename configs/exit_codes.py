"""Exit codes of every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means; the same for all commands."""

    OK = 0
    FAILED = 1  # all trials failed, or a bug
    USAGE = 2  # bad usage, bad config, or a run, version or model that does not exist
    BLOCKED = 3  # blocked by the gate
    UNREACHABLE = 4  # MLflow, Ray or storage cannot be reached
    INTERRUPTED = 130  # Ctrl-C or SIGTERM
