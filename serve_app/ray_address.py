"""Connecting to Ray: what keeps a command out is told at once, and in words.

Ray itself would try an address where nobody listens for two minutes, one that wants another token for twenty seconds,
and then not say which of the two it was.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from configs.exit_codes import Unreachable, UsageError

_HOST_AND_PORT = re.compile(r"(ray://)?(\[[^\]]+\]|[^:/]+):(\d+)")
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TIMEOUT_S = 10.0
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def join(address: str, **options: Any) -> Any:
    """``ray.init`` at ``address`` (RAY_ADDRESS, or ``local``), which is quiet and leaves SIGTERM to the command.

    Raises what ``require_entry`` does, and Unreachable, which says what kept it out and the way in.
    """
    import ray
    from ray.exceptions import RayError

    require_entry(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        which = "a local Ray" if address == "local" else f"Ray at RAY_ADDRESS={address}"
        raise Unreachable(f"{which} cannot be used: {_reason(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own aborts without a clean end


def require_entry(address: str) -> None:
    """Raises Unreachable when nothing listens at ``address``, host:port or ray://host:port, or it wants another token
    than the one that Ray would send. UsageError: it is the dashboard's.

    Others, such as ``auto``, are for Ray to find.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS={address} is the dashboard, which takes jobs: submit this command with `ray job submit`, or "
            "set RAY_ADDRESS to host:port of `ray start --head`, or to auto for the Ray on this machine"
        )
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        return
    host, port = found[2].strip("[]"), int(found[3])
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise Unreachable(f"no Ray at RAY_ADDRESS={address}: {error}") from None
    mode = os.environ.get("RAY_AUTH_MODE", "disabled").lower()
    if not found[1] and mode in ("token", "disabled"):  # Ray's client and Kubernetes have ways of their own
        _require_token(address, mode)


def _require_token(address: str, mode: str) -> None:
    import grpc

    token = _token() if mode == "token" else None
    sent = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=_TIMEOUT_S, metadata=sent)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                return  # Ray finds out what it is
        else:
            return
    if token is not None:
        problem = "wants another token than the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    elif mode == "token":
        problem = "wants a token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token have none"
    else:
        problem = "wants a token, and RAY_AUTH_MODE is not set to token, so that none is sent"
    raise Unreachable(
        f"Ray at RAY_ADDRESS={address} {problem}: set RAY_AUTH_MODE=token and put there what `ray get-auth-token` "
        "prints on the head"
    )


def _token() -> str | None:
    """What Ray would send, looked for where Ray does."""
    given = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    try:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _reason(error: Exception) -> str:
    """In words, with the fix."""
    versions = _VERSIONS.findall(str(error))
    if len(versions) == 2:
        cluster, here = (f"Ray {ray} with Python {python}" for ray, python in versions)
        return (
            f"the cluster runs {cluster}, and this command {here}. Both must be the same to the last digit: submit it "
            "as a job, which runs in the cluster's Python, or install these versions here"
        )
    return f"{(str(error) or type(error).__name__).splitlines()[0]} (is that cluster up?)"
