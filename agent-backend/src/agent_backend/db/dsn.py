"""Whose certificate a database has to show: asyncpg with the roots of Supabase's certificates at hand.

Supabase's roots are its own and in no system's store. They come with the server, so that
`sslmode=verify-full` works on a machine that nobody can put a file on. asyncpg's `require` would take any
certificate.
"""

from __future__ import annotations

import ssl
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from agent_backend.credentials import is_supabase
from agent_backend.errors import OperatorError

_ROOTS = "supabase-ca.crt"
UNTRUSTED = (ssl.SSLCertVerificationError, asyncpg.exceptions.ClientConfigurationError)
"""Not away, and trying again does not help: somebody else, or a root certificate that is not there."""


def trusting(dsn: str) -> str:
    """Return a database URL that names the roots to trust, where it is Supabase's and names none itself."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    if "sslrootcert" in query or not is_supabase(parts.hostname or ""):
        return dsn
    if query.get("sslmode", [""])[-1] not in {"verify-ca", "verify-full"}:
        return dsn
    roots = resources.files("agent_backend.db").joinpath(_ROOTS)
    return f"{dsn}&sslrootcert={quote(str(roots))}"


def see_roots(dsn: str) -> None:
    """See that the roots a URL names can be read. Raises OperatorError.

    What asyncpg raises names no file, and is an OSError as of a database that is away.
    """
    roots = parse_qs(urlsplit(dsn).query).get("sslrootcert", [""])[-1]
    if not roots:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=roots)
    except OSError as error:
        why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise OperatorError(
            f"the root certificate of the database's URL cannot be read: {roots} ({why})",
            hint="sslrootcert is a file of PEM certificates on this machine; for Supabase leave it out",
        ) from error


def untrusted(error: Exception, name: str) -> OperatorError:
    """Return one of `UNTRUSTED` in words; `name`: the variable that the URL came from."""
    return OperatorError(
        f"the database does not show a certificate that is trusted ({type(error).__name__})",
        hint=f"check the host in {name}, and its sslrootcert: the provider's root certificate",
    )


async def connect(dsn: str, **options: Any) -> asyncpg.Connection:
    """Connect as asyncpg.connect does, with those roots.

    Raises ssl.SSLCertVerificationError: somebody else's certificate; OperatorError: as `see_roots`.
    """
    see_roots(dsn)
    return await asyncpg.connect(trusting(dsn), **options)
