"""`/metrics` on a port of its own, which the proxy does not publish; and how ports are opened."""

from __future__ import annotations

import asyncio

from agent_backend.listening import listen
from agent_backend.telemetry import exposition

_MAX_HEAD = 16 * 1024
_HEAD_SECONDS = 5


async def start(host: str, port: int) -> asyncio.Server:
    """Start the metrics server. Raises OperatorError when the port cannot be had."""
    return await asyncio.start_server(_answer, sock=listen(host, port, "METRICS_PORT"), limit=_MAX_HEAD)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request and close: scrapers come four times a minute."""
    try:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


def _response(head: bytes) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path != b"/metrics":
        status, body = b"404 Not Found", b"only /metrics\n"
    elif method not in {b"GET", b"HEAD"}:
        status, body = b"405 Method Not Allowed", b"only GET\n"
    else:
        status, body = b"200 OK", exposition()
    return b"\r\n".join(
        (
            b"HTTP/1.1 " + status,
            b"Content-Type: text/plain; version=0.0.4; charset=utf-8",
            b"Content-Length: %d" % len(body),
            b"Connection: close",
            b"",
            b"" if method == b"HEAD" else body,
        )
    )
