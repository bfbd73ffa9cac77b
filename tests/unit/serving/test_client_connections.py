"""The client's connections, against a server of our own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve_app.client import Client, RetryPolicy

CLIENTS = 30  # more than the 20 idle connections that httpx keeps by default
ANSWER = {"label": "good", "score": 1.0, "probabilities": {"good": 1.0}, "truncated": False, "model_version": "3"}


class Server(ThreadingHTTPServer):
    """Answers when as many requests as ``CLIENTS`` are there, and counts connections."""

    daemon_threads = True
    request_queue_size = CLIENTS

    def __init__(self) -> None:
        self.all_are_there, self.connections = threading.Barrier(CLIENTS), 0
        super().__init__(("127.0.0.1", 0), Handler)

    def get_request(self) -> tuple[object, object]:  # type: ignore[override]
        """Called for every connection."""
        self.connections += 1
        return super().get_request()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.all_are_there.wait(20)
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_threads_that_share_a_client_keep_their_connections(server: Server) -> None:
    client = Client(f"http://127.0.0.1:{server.server_port}", retry=RetryPolicy(max_retries=0))
    with client, ThreadPoolExecutor(CLIENTS) as threads:
        for _ in range(5):
            answers = list(threads.map(client.predict, ["a text"] * CLIENTS))
            assert [answer.label for answer in answers] == ["good"] * CLIENTS
    assert server.connections == CLIENTS
