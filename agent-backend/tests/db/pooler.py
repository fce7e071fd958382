"""A pooler as Supabase's is, before the tests' Postgres: TLS by a certificate of its own, and it forgets.

Of a client's startup message Supavisor hands on the user, the database, search_path and application_name,
and nothing else (supabase/supavisor, `client_handler/protocol_helpers.ex`, `db_handler.ex`). The user is
ROLE.REF.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "aws-0-eu-central-1.pooler.supabase.com"
_HANDED_ON = frozenset({"user", "database", "search_path", "application_name"})
_PROTOCOL = 196608


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Write a certificate that signs itself, and its key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    written, secret = folder / "pooler.crt", folder / "pooler.key"
    written.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return written, secret


class Pooler:
    """`port` on loopback; `startups`: what clients said of themselves once they had taken the certificate."""

    def __init__(self, database: str, tls: ssl.SSLContext) -> None:
        self._parts = urlsplit(database)
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.startups: list[dict[str, str]] = []
        self.port = 0

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; one that does not take the certificate is over."""
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(self._tls)
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            said = (await reader.readexactly(length - 4))[4:].decode().split("\0")
            startup = dict(zip(said[0::2], said[1::2], strict=False))
            self.startups.append(startup)
            from_database, to_database = await self._database()
            to_database.write(_startup(startup))
            back = asyncio.create_task(_copy(from_database, writer))
            self._tasks.add(back)
            await _copy(reader, to_database)
            await back
        writer.close()

    async def _database(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = parse_qs(self._parts.query).get("host")
        if folder is not None:
            path = Path(unquote(folder[0])) / f".s.PGSQL.{self._parts.port or 5432}"
            return await asyncio.open_unix_connection(path)
        return await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)


def _startup(said: dict[str, str]) -> bytes:
    kept = {name: value for name, value in said.items() if name in _HANDED_ON}
    kept["user"] = kept["user"].rpartition(".")[0]
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in kept.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, _PROTOCOL) + body


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def pooling(database: str, files: tuple[Path, Path]) -> AsyncGenerator[Pooler]:
    """Run a pooler before the database of a URL, with this certificate and key."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*files)
    pooler = Pooler(database, tls)
    server = await asyncio.start_server(pooler.client, "127.0.0.1", 0)
    pooler.port = server.sockets[0].getsockname()[1]
    try:
        yield pooler
    finally:
        server.close()
        await server.wait_closed()
