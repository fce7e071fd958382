"""HTTP/1.1 to an emulator on loopback, one request for each connection.

`http.client` would take longer to import than most commands take.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class Url:
    """`http://HOST:PORT` on loopback. Raises ValueError."""

    def __init__(self, text: str) -> None:
        scheme, _, rest = text.rstrip("/").partition("://")
        host, _, port = rest.rpartition(":")
        if scheme != "http" or host.strip("[]") not in LOOPBACK or not port.isdecimal():
            raise ValueError(text)
        self.host, self.port = host.strip("[]"), int(port)
        self.text = text.rstrip("/")


def ask(
    url: Url, method: str, path: str, *, headers: dict[str, str], body: Any = None, seconds: float
) -> tuple[int, bytes]:
    """Return status and body of an answer. Raises OSError, also when nothing comes for `seconds`."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = {
        "Host": f"{url.host}:{url.port}",
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection((url.host, url.port), timeout=seconds) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            while answer.readline() not in (b"\r\n", b""):
                pass
            return status, answer.read()
