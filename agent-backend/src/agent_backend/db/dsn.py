"""Whose certificate a database has to show: asyncpg with the roots of Supabase's certificates at hand.

Supabase's roots are its own and in no system's store. They come with the server, so that
`sslmode=verify-full` works on a machine that nobody can put a file on. asyncpg's `require` would take any
certificate.
"""

from __future__ import annotations

from importlib import resources
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from agent_backend.credentials import is_supabase

_ROOTS = "supabase-ca.crt"


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


async def connect(dsn: str, **options: Any) -> asyncpg.Connection:
    """Connect as asyncpg.connect does, with those roots; ssl.SSLCertVerificationError: somebody else's."""
    return await asyncpg.connect(trusting(dsn), **options)
