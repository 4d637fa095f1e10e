"""A real HTTP server on this machine, in a thread, that answers as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What came in."""

    path: str
    headers: dict[str, str]
    body: Any


class Answer(NamedTuple):
    """What goes out; content that is no text is written as JSON."""

    status: int = 200
    content: Any = ""
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)


class Served:
    """A running server.

    Attributes:
        address: as in `http://127.0.0.1:40123`.
        requests: all that came in so far.
        most: requests that were in work at the same time at most.
    """

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer, self.requests, self.most = answer, [], 0
        self._active, self._lock = 0, threading.Lock()

    def took(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            self._active += 1
            self.most = max(self.most, self._active)
        try:
            return self.answer(request)
        finally:
            with self._lock:
                self._active -= 1


@contextlib.contextmanager
def served(answer: Callable[[Request], Answer]) -> Iterator[Served]:
    """Yield a server that answers POST requests by `answer`."""
    running = Served(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            status, said, headers = running.took(Request(self.path, dict(self.headers), json.loads(content)))
            body = (said if isinstance(said, str) else json.dumps(said)).encode()
            with contextlib.suppress(ConnectionError):  # whoever asked may have given up
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    running.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
