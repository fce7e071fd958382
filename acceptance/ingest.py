"""A Sentry at the network's level: takes envelopes as Sentry's ingest does and keeps every byte of them."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef"
_PATIENCE = 10


class Ingest:
    """What one project was sent: requests with their headers, and the events that stand in envelopes."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.items: list[str] = []
        """The type of each envelope's item."""
        self.answer = 200
        self.dsn = ""
        self._changed = threading.Condition()

    def take(self, path: str, headers: str, body: bytes) -> None:
        """Keep a request; Sentry's developer documentation, Envelopes: lines of JSON, payloads by length."""
        with self._changed:
            self.requests.append(f"{path}\n{headers}\n{body.decode()}")
            rest = body.partition(b"\n")[2]
            while rest.strip():
                head, _, rest = rest.partition(b"\n")
                item = json.loads(head)
                length = item.get("length", len(rest.partition(b"\n")[0]))
                self.items.append(item["type"])
                if item["type"] == "event":
                    self.events.append(json.loads(rest[:length]))
                rest = rest[length:].removeprefix(b"\n")
            self._changed.notify_all()

    def heard(self) -> str:
        """Return everything that came in, headers too."""
        return "\n".join(self.requests)

    def wait_for(self, count: int) -> None:
        """Return once `count` events have come."""
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            while len(self.events) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"{len(self.events)} events of {count}"
                self._changed.wait(left)


@contextmanager
def ingest() -> Generator[Ingest]:
    """Run an ingest on a free port."""
    kept = Ingest()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            kept.take(self.path, str(self.headers), body)
            self.send_response(kept.answer)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.dsn = f"http://{KEY}@127.0.0.1:{server.server_address[1]}/7"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
