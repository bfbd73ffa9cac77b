"""A way to an HTTP server that is lost at a request of one's choice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-encoding", "content-length", "keep-alive", "host"}


class Forwarder:
    """Passes requests on to ``upstream`` until one for which ``is_last(method, path)``; context manager.

    From then on nothing gets through in either direction: that request does not arrive, or with ``answer_lost`` it is
    carried out and only its answer is lost. ``lost`` is called at that moment.
    """

    def __init__(
        self,
        upstream: str,
        is_last: Callable[[str, str], bool],
        *,
        answer_lost: bool = False,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._upstream, self._is_last, self._answer_lost, self._lost = upstream, is_last, answer_lost, lost
        self._lock = threading.Lock()
        self.is_lost = False
        forwarder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    forwarder._pass_on(self)
                else:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self._lock:
            last = not self.is_lost and self._is_last(request.command, request.path)
            gone, self.is_lost = self.is_lost, self.is_lost or last
        answer = None
        if not gone and (not last or self._answer_lost):
            headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
            answer = requests.request(
                request.command, self._upstream + request.path, data=body, headers=headers, timeout=60
            )
        if last:
            self._lost()
        if last or answer is None:
            request.close_connection = True
            return
        request.send_response(answer.status_code)
        for key, value in answer.headers.items():
            if key.lower() not in _HOP_BY_HOP:
                request.send_header(key, value)
        request.send_header("Content-Length", str(len(answer.content)))
        request.end_headers()
        request.wfile.write(answer.content)
