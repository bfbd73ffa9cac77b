"""Ends the service that runs on Ray without breaking a request: new predictions are refused with 503 draining, what was
admitted is answered, then the application is deleted. Ray and Serve go on.

    RAY_ADDRESS=auto python -m serve_app.drain     # auto: the Ray on this machine

Do this before `serve shutdown`, or before `serve run` gets a signal: both stop the proxy first, and with it what is in
work.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from configs.exit_codes import EXIT_CODES, ExitCode
from serve_app.app import APP_NAME, start_draining
from serve_app.ray_address import require_listener


def end(app_name: str) -> None:
    """Drains and deletes the application on the connected Ray; returns when it is gone. Raises LookupError if there is
    none of this name."""
    from ray import serve

    running = sorted(serve.status().applications)
    if app_name not in running:
        raise LookupError(f"there is no application {app_name!r} on this Ray; running: {', '.join(running) or 'none'}")
    start_draining(app_name)
    serve.delete(app_name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m serve_app.drain", description=__doc__, epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--application", default=APP_NAME, help="name of the application (default: %(default)s)")
    asked = parser.parse_args(arguments)
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # what Ray finds by itself may be anybody's
        print("RAY_ADDRESS is not set: say which Ray, or auto for the one on this machine", file=sys.stderr)
        return ExitCode.USAGE
    import ray
    from ray.serve.exceptions import RayServeException

    try:
        require_listener(address)
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        print(f"Ray cannot be used: {str(error).splitlines()[0]}", file=sys.stderr)
        return ExitCode.UNREACHABLE
    try:
        end(asked.application)
    except LookupError as error:
        print(error, file=sys.stderr)
        return ExitCode.USAGE
    except (TimeoutError, RayServeException) as error:
        print(f"{asked.application} cannot be drained: {str(error).splitlines()[0]}", file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print("interrupted: the application may be draining already", file=sys.stderr)
        return ExitCode.INTERRUPTED
    finally:
        ray.shutdown()
    print(f"drained and deleted: {asked.application}", file=sys.stderr)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
