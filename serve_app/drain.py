"""Ends the service that runs on Ray without breaking a request: new predictions are refused with 503 draining, what was
admitted is answered, then the application is deleted. Ray and Serve go on.

    RAY_ADDRESS=auto python -m serve_app.drain     # auto: the Ray on this machine

Do this before `serve shutdown`, or before `serve run` gets a signal: both stop the proxy first, and with it what is in
work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from configs.exit_codes import EXIT_CODES, CommandFailed, ExitCode, UsageError
from serve_app.app import APP_NAME, start_draining
from serve_app.console import run_command
from serve_app.ray_address import join


def end(app_name: str) -> None:
    """Drains and deletes the application on the connected Ray; returns when it is gone. Raises UsageError if there is
    none of this name, and CommandFailed if it does not drain."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    running = sorted(serve.status().applications)
    if app_name not in running:
        raise UsageError(f"there is no application {app_name!r} on this Ray; running: {', '.join(running) or 'none'}")
    try:
        start_draining(app_name)
        serve.delete(app_name)
    except (TimeoutError, RayServeException) as error:
        raise CommandFailed(f"{app_name} cannot be drained: {str(error).splitlines()[0]}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m serve_app.drain", description=__doc__, epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--application", default=APP_NAME, help="name of the application (default: %(default)s)")
    asked = parser.parse_args(arguments)

    def work() -> tuple[dict[str, Any], list[str], int]:
        address = os.environ.get("RAY_ADDRESS")
        if not address:  # what Ray finds by itself may be anybody's
            raise UsageError("RAY_ADDRESS is not set: say which Ray, or auto for the one on this machine")
        import ray

        join(address, namespace="serve")
        try:
            end(asked.application)
        except KeyboardInterrupt:
            print("the application may be draining already", file=sys.stderr)
            raise
        finally:
            ray.shutdown()
        print(f"drained and deleted: {asked.application}", file=sys.stderr)
        return {}, [], ExitCode.OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
