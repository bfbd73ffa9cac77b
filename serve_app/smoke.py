"""A smoke test of a running service, from outside, as the last step of a deployment:

    python -m serve_app.smoke [--url URL] [--version N] [--timeout SECONDS] [--text TEXT]

Passes when the service is ready, every replica serves version N, a prediction adds up, and what must be refused is
refused. The API key comes from TRIALGATE_API_KEY and is never printed; with one, a call without it must be refused too.
Exit codes: 0 passed, 1 a check failed, 2 bad usage, 4 the service cannot be reached, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from configs.exit_codes import CommandFailed, ExitCode, Unreachable, UsageError
from serve_app import client as service
from serve_app.client import API_KEY_VARIABLE, Client, Info, InvalidRequest, Prediction, TrialgateError, Unauthorized
from serve_app.console import run_command

_POLL_S: Final = 1.0
_ROUNDING: Final = 1e-3  # probabilities in bf16, rounded for the reply, may miss 1 by this much


class CheckFailed(CommandFailed):
    """The service answers, and not as it should; the message says what was found and what was expected."""


def smoke(
    client: Client,
    *,
    version: str | None = None,
    text: str = "a good movie",
    timeout_s: float = 120.0,
    stranger: Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """Yields a line per check that passed. Raises CheckFailed, or TrialgateError when a call fails.

    ``version``: what every replica must serve; None: whatever one serves. ``timeout_s``: for the service to be ready
    with it. ``stranger``: a client without the API key, which the service must refuse.
    """
    until = clock() + timeout_s
    client.wait_until_ready(timeout_s)
    yield "ready"
    info = client.info()
    while problem := _of_another_version(info, version):
        if clock() >= until:
            raise CheckFailed(f"{problem} after {timeout_s:g} s")
        sleep(_POLL_S)
        info = client.info()
    yield f"{len(info.replicas)} replica(s) serve version {info.model_version} of {info.model_name}"
    prediction = client.predict(text)
    _check_prediction(prediction, info, version)
    yield f"a text is {prediction.label} ({prediction.score:.3f}), by version {prediction.model_version}"
    _check_refusal(client)
    yield "an empty text is refused"
    if stranger is not None:
        _check_closed(stranger, text)
        yield "a call without the API key is refused"


def _of_another_version(info: Info, version: str | None) -> str | None:
    """What keeps the service from being on ``version`` altogether; None when nothing does."""
    if not info.replicas:
        return "no replica reports itself"
    if version is None:
        return None
    found = [str(replica.get("version")) for replica in info.replicas]
    if any(serving != version for serving in found):
        return f"expected version {version} on every replica, found {', '.join(found)}"
    return None


def _check_prediction(prediction: Prediction, info: Info, version: str | None) -> None:
    if version is not None and prediction.model_version != version:
        raise CheckFailed(f"the prediction was computed by version {prediction.model_version}, expected {version}")
    if info.labels is not None and set(prediction.probabilities) != set(info.labels):
        raise CheckFailed(f"probabilities of {sorted(prediction.probabilities)}, expected {sorted(info.labels)}")
    total = math.fsum(prediction.probabilities.values())
    if not abs(total - 1.0) <= _ROUNDING:  # not > : a NaN must fail too
        raise CheckFailed(f"the probabilities sum up to {total}, expected 1")
    likeliest = max(prediction.probabilities, key=lambda label: prediction.probabilities[label])
    if prediction.label != likeliest:
        raise CheckFailed(f"the label is {prediction.label}, and the most probable one {likeliest}")


def _check_refusal(client: Client) -> None:
    try:
        answer = client.predict("")
    except InvalidRequest as error:
        if error.code != "empty_text":
            raise CheckFailed(f"an empty text gave {error.code}, expected empty_text") from error
        return
    raise CheckFailed(f"an empty text was answered with {answer.label}, expected 422 empty_text")


def _check_closed(stranger: Client, text: str) -> None:
    try:
        stranger.predict(text)
    except Unauthorized:
        return
    raise CheckFailed("a call without the API key was answered, expected 401: is SERVE_API_KEYS set for the service?")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.smoke",
        description="Checks a running service from outside. The API key comes from TRIALGATE_API_KEY.",
        epilog="exit codes: 0 passed; 1 a check failed; 2 bad usage; 4 the service cannot be reached; 130 interrupted",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service")
    parser.add_argument("--version", metavar="N", help="the version that every replica must serve")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=120.0, help="for it to be ready with it")
    parser.add_argument("--text", default="a good movie", help="what to classify")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks, a line each, and returns the exit code."""
    options = _parser().parse_args(arguments)

    def work() -> tuple[dict[str, Any], list[str], int]:
        try:
            client = Client(options.url)
            stranger = Client(options.url, api_key="") if os.environ.get(API_KEY_VARIABLE) else None
        except ValueError as error:
            raise UsageError(str(error)) from None
        try:
            for line in smoke(
                client, version=options.version, text=options.text, timeout_s=options.timeout, stranger=stranger
            ):
                print(f"ok: {line}", flush=True)
        except service.Unreachable as error:
            raise Unreachable(f"{options.url}: {error}") from error
        except TrialgateError as error:
            raise CommandFailed(str(error)) from error
        return {}, [], ExitCode.OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
