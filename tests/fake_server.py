"""A server on this machine that answers JSON, and fails in every way that a real one does, when told to."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a server does with a request: answers it, or something else in its place. It is given the handler and the answer
# that it would send.
Fault = Callable[["_Handler", Any], None]


class Status(Exception):
    """Raised by `answer`: a status in place of 200, and the body that goes with it."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


@dataclass
class FakeServer:
    """What it answers, what it was asked, and which faults come next.

    Attributes:
        answer: `(path, body) -> JSON`; `body` is None for GET.
        faults: What happens to the next requests, one each; `None` in between for an answer. GET requests are spared.
        requests: Path and body of every request, those that failed too.
        headers: Of every request.
        most: The largest number of requests under way at once.
    """

    answer: Callable[[str, Any], Any]
    faults: list[Fault | None] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    most: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0

    def posted(self, path: str) -> list[Any]:
        """Return the bodies of all requests to a path."""
        return [body for one, body in self.requests if one == path]

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Context manager: serve on a free port."""
        http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        http.daemon_threads = True
        http.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        fake: FakeServer = self.server.fake  # type: ignore[attr-defined]
        with fake.lock:
            fake.requests.append((self.path, body))
            fake.headers.append(dict(self.headers))
            fault = fake.faults.pop(0) if fake.faults and body is not None else None
            fake.under_way += 1
            fake.most = max(fake.most, fake.under_way)
        try:
            try:
                found, code = fake.answer(self.path, body), 200
            except Status as status:
                found, code = status.body, status.status
            if fault is None:
                self.send(found, code)
            else:
                fault(self, found)
        finally:
            with fake.lock:
                fake.under_way -= 1

    def send(self, found: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON, or a text as it is."""
        content = (found if isinstance(found, str) else json.dumps(found)).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def status(code: int, said: Any = "no", **headers: str) -> Fault:
    """Return a fault: another status; underscores in names of headers stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.send({"error": {"message": said}}, code, named)


def changed(change: Callable[[Any], Any]) -> Fault:
    """Return a fault: the answer changed by a function; what that returns is sent, a text as it is."""
    return lambda handler, found: handler.send(change(found))


def cut(handler: _Handler, found: Any) -> None:
    """Close the connection in the middle of the answer."""
    content = json.dumps(found).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def reset(handler: _Handler, _: Any) -> None:
    """Reset the connection without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = _Nowhere()  # type: ignore[assignment]


def slow(seconds: float) -> Fault:
    """Return a fault: the answer comes late."""

    def late(handler: _Handler, found: Any) -> None:
        time.sleep(seconds)
        try:
            handler.send(found)
        except OSError:  # the client has gone
            handler.close_connection = True

    return late


class _Nowhere:
    closed = False

    def write(self, content: bytes) -> int:
        """Write nothing."""
        return len(content)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
