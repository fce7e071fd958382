"""The headers Fly Proxy adds to a request and to its response.

Sources: superfly/docs networking/request-headers and reference/configuration (`http_options.response`);
names not documented there (Fly-Forwarded-Proto, Fly-Forwarded-Ssl, Fly-Request-Id) from logged requests.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final, cast

import msgspec

from fly_emulator import __version__
from fly_emulator.edge.http1 import Headers, RequestHead, ResponseHead

_HOP_BY_HOP: Final = (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate")
_OURS: Final = (
    b"fly-client-ip",
    b"fly-region",
    b"fly-forwarded-port",
    b"fly-forwarded-proto",
    b"fly-forwarded-ssl",
    b"fly-request-id",
    b"fly-replay-src",
    b"fly-replay-failed",
    b"fly-preferred-instance-unavailable",
    b"x-forwarded-proto",
    b"x-forwarded-ssl",
)
"""A client cannot set these."""
SERVER: Final = f"Fly/{__version__} (fly-emulator)".encode()
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connection came in."""

    client_ip: str
    edge_ip: str
    port: int
    """The service's port (80, 443), not the local one that stands for it."""
    tls: bool
    region: str


def ulid() -> str:
    """Return a ULID: 48 bits of milliseconds, 80 of chance, in Crockford's base 32."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def request_id(region: str) -> str:
    """Return a Fly-Request-Id."""
    return f"{ulid()}-{region}"


def upstream_head(head: RequestHead, origin: Origin, rid: str) -> RequestHead:
    """Return the head a machine is sent; a wish to upgrade stays."""
    headers = head.headers.copy()
    upgrade = head.upgrade
    named = tuple(word for word in headers.tokens(b"connection") if word not in {b"te", b"trailer"})
    headers.remove(*_HOP_BY_HOP, *_OURS, *(name for name in named if name != b"upgrade"))
    if upgrade is None:
        headers.remove(b"upgrade")
    else:
        headers.add(b"Connection", b"Upgrade")
    proto, ssl = (b"https", b"on") if origin.tls else (b"http", b"off")
    port = b"%d" % origin.port
    forwarded = headers.get(b"x-forwarded-for")
    chain = [*([forwarded] if forwarded else []), origin.client_ip.encode(), origin.edge_ip.encode()]
    headers.set(b"X-Forwarded-For", b", ".join(chain))
    if headers.get(b"x-forwarded-port") is None:
        headers.add(b"X-Forwarded-Port", port)
    headers.set(b"Via", _via(headers, head.version))
    headers.items += [
        (b"X-Forwarded-Proto", proto),
        (b"X-Forwarded-Ssl", ssl),
        (b"Fly-Client-IP", origin.client_ip.encode()),
        (b"Fly-Forwarded-Proto", proto),
        (b"Fly-Forwarded-Ssl", ssl),
        (b"Fly-Forwarded-Port", port),
        (b"Fly-Region", origin.region.encode()),
        (b"Fly-Request-Id", rid.encode()),
    ]
    return RequestHead(head.method, head.target, head.version, headers)


def client_head(
    head: ResponseHead, request: RequestHead, rid: str, options: dict[str, Any], *, keep: bool
) -> ResponseHead:
    """Return the head the client is sent. `options` are the port's `http_options`."""
    headers = head.headers.copy()
    response = options.get("response") or {}
    headers.remove(*_HOP_BY_HOP)
    if head.status == 101:
        headers.add(b"Connection", b"Upgrade")
    elif not keep:
        headers.add(b"Connection", b"close")
    elif request.version == b"HTTP/1.0":
        headers.add(b"Connection", b"keep-alive")
    _configured(headers, response.get("headers") or {})
    if not response.get("pristine"):
        headers.set(b"Server", SERVER)
        headers.set(b"Via", _via(headers, request.version))
        headers.set(b"Fly-Request-Id", rid.encode())
    return ResponseHead(head.version, head.status, head.reason, headers)


def _via(headers: Headers, version: bytes) -> bytes:
    before = headers.get(b"via")
    return (before + b", " if before else b"") + version.removeprefix(b"HTTP/") + b" fly.io"


def _configured(headers: Headers, changes: dict[str, Any]) -> None:
    """Apply `http_options.response.headers`: a text or a list sets, false removes."""
    for name, value in changes.items():
        headers.remove(name.lower().encode())
        if value is False:
            continue
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        for one in values:
            headers.add(name.encode(), str(one).encode())
