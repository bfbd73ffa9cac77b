"""Looks whether anything answers at a Ray address before Ray does: Ray would try for two minutes, and then end the
process with a status of its own."""

from __future__ import annotations

import re
import socket

from configs.exit_codes import Unreachable

_HOST_AND_PORT = re.compile(r"(?:ray://)?(\[[^\]]+\]|[^:/]+):(\d+)")
_TIMEOUT_S = 10.0


def require_listener(address: str) -> None:
    """Raises Unreachable when nothing listens at ``address``, host:port or ray://host:port.

    Others, such as ``auto``, are for Ray to find.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None:
        return
    host, port = found[1].strip("[]"), int(found[2])
    try:
        socket.create_connection((host, port), _TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise Unreachable(f"no Ray at RAY_ADDRESS={address}: {error}") from None
