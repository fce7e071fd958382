"""A proxy on loopback that notes what is asked to be changed: what a flyctl does, beside what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Asked(NamedTuple):
    """A request: method and path, and its JSON."""

    line: str
    body: Any


class Recorder:
    """What was asked so far, in its order; GET is not kept, as it changes nothing."""

    def __init__(self, target: str) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self.target = urlsplit(target)

    def note(self, method: str, path: str, body: bytes) -> None:
        if method != "GET":
            self.asked.append(Asked(f"{method} {path}", json.loads(body) if body.strip() else None))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where the client has gone: flyctl does not wait for every answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def recording(target: str) -> Generator[Recorder]:
    """Serve in front of `target` until the end of the block."""
    recorder = Recorder(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.note(self.command, self.path, body)
            headers = {name: value for name, value in self.headers.items() if name != "Accept-Encoding"}
            onward = HTTPConnection(recorder.target.hostname or "", recorder.target.port, timeout=90)
            try:
                onward.request(self.command, self.path, body, headers)
                answer = onward.getresponse()
                content = answer.read()
            finally:
                onward.close()
            self.send_response(answer.status)
            if kind := answer.getheader("Content-Type"):
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _pass  # noqa: N815 - http.server looks for these names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    recorder.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
