"""HTTP below the level of a client library: any bytes as a request, whatever comes back as a reply."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.integration.serving.world import Service


@dataclass(frozen=True)
class Reply:
    """A reply; ``headers`` by lower-case name, in order."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for found, value in self.headers if found == name]

    @property
    def error(self) -> dict[str, Any]:
        """What is in the envelope of an error."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def connect(service: Service) -> socket.socket:
    """A connection to the service; nothing on it takes longer than 20 s."""
    return socket.create_connection((service.client.base_url.host, service.client.base_url.port), timeout=20)


def read_reply(connection: socket.socket, method: str = "POST") -> Reply:
    """The next reply; a 100 Continue is skipped. Raises http.client.HTTPException where none comes."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    headers = [(name.lower(), value) for name, value in response.getheaders()]
    return Reply(response.status, headers, response.read())


def head(method: str, path: str, headers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: service"]
    return b"\r\n".join([*lines, *(name.encode() + b": " + value for name, value in headers), b"", b""])


def send(
    service: Service, method: str, path: str, headers: Sequence[tuple[str, bytes]] = (), body: bytes = b""
) -> Reply:
    """The reply to one request on a connection of its own. ``headers``: any bytes, sent as they are."""
    length = [("Content-Length", str(len(body)).encode())] if body else []
    with connect(service) as connection:
        connection.sendall(head(method, path, [*headers, *length]) + body)
        return read_reply(connection, method)
