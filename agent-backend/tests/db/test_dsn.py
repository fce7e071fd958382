from __future__ import annotations

import datetime as dt
import socket
import ssl
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from agent_backend.db.dsn import connect, trusting
from agent_backend.db.pool import ROLE, Database
from agent_backend.errors import OperatorError

from .pooler import HOST, certificate, pooling


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///x?host=/tmp/socket",
        "postgresql://a@localhost/x?sslmode=verify-full",
        "postgresql://a@elsewhere.example/x?sslmode=verify-full",
        f"postgresql://a.ref@{HOST}:5432/postgres",
        f"postgresql://a.ref@{HOST}:5432/postgres?sslmode=require",
        f"postgresql://a.ref@{HOST}:5432/postgres?sslmode=verify-full&sslrootcert=/mine",
        "postgresql://a@db.ref.supabase.co.example/x?sslmode=verify-full",
    ],
)
def test_a_url_that_is_not_supabases_or_names_its_roots_stays_as_it_is(url: str) -> None:
    assert trusting(url) == url


def test_supabases_roots_come_with_the_server_and_are_good_for_years() -> None:
    for host in (HOST, "db.ref.supabase.co"):
        assert trusting(f"postgresql://a.ref@{host}/x?sslmode=verify-full").endswith("supabase-ca.crt")
    roots = resources.files("agent_backend.db").joinpath("supabase-ca.crt").read_bytes()
    found = x509.load_pem_x509_certificates(roots)
    said = roots.decode().replace(":", "").lower()
    assert len(found) == 2
    assert all(each.fingerprint(hashes.SHA256()).hex() in said for each in found)
    # The first ends in April 2031. This fails half a year before: look then what Supabase's CLI carries.
    assert min(each.not_valid_after_utc for each in found) > dt.datetime.now(dt.UTC) + dt.timedelta(days=180)


@pytest.mark.parametrize(
    ("name", "why"), [("missing", "No such file"), ("empty", "no certificate"), ("", "a directory")]
)
async def test_a_root_certificate_that_cannot_be_read_is_named(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "empty").touch()
    url = f"postgresql://a:hunter2@127.0.0.1:1/x?sslmode=verify-full&sslrootcert={tmp_path / name}"
    database = Database(url, min_size=1, max_size=1, lock_timeout_ms=1000)
    for connecting in (database.open(), connect(url)):
        with pytest.raises(OperatorError) as caught:
            await connecting
        assert str(tmp_path / name) in caught.value.problem
        assert why in caught.value.problem
        assert "hunter2" not in caught.value.problem + caught.value.hint


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pooler's name mean this machine."""
    looked_up = socket.getaddrinfo

    def look_up(host: str | bytes | None, *args: object, **options: object) -> object:
        return looked_up("127.0.0.1" if host == HOST else host, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def through(port: int, database: str, query: str, login: str | None = None) -> str:
    parts = urlsplit(database)
    user = login or parts.username or "postgres"
    return f"postgresql://{user}.ref:hunter2@{HOST}:{port}{parts.path}?{query}"


@pytest.mark.usefixtures("at_home")
async def test_somebody_else_at_the_poolers_address_is_told_nothing(
    tmp_path: Path, database_url: str
) -> None:
    async with pooling(database_url, certificate(tmp_path, HOST)) as pooler:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(through(pooler.port, database_url, "sslmode=verify-full"))
        assert pooler.startups == []
        # What check-config refuses, and why: with `require` anybody will do.
        fooled = await connect(through(pooler.port, database_url, "sslmode=require"))
        await fooled.close()
        assert pooler.startups[0]["user"].endswith(".ref")


@pytest.mark.usefixtures("at_home")
async def test_a_certificate_for_another_name_is_refused(tmp_path: Path, database_url: str) -> None:
    files = certificate(tmp_path, "aws-0-eu-central-1.pooler.example")
    async with pooling(database_url, files) as pooler:
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(through(pooler.port, database_url, f"sslmode=verify-full&sslrootcert={files[0]}"))
        assert pooler.startups == []


@pytest.mark.usefixtures("at_home")
async def test_a_pooler_that_drops_the_settings_does_not_loosen_them(
    tmp_path: Path, database_url: str
) -> None:
    files = certificate(tmp_path, HOST)
    async with pooling(database_url, files) as pooler:
        url = through(pooler.port, database_url, f"sslmode=verify-full&sslrootcert={files[0]}")
        database = Database(url, min_size=1, max_size=1, lock_timeout_ms=1234)
        await database.open()
        try:
            beside = await database.connect()
            try:
                for connection in (database.pool, beside):
                    assert await connection.fetchval("SELECT current_user") == ROLE
                    assert await connection.fetchval("SHOW lock_timeout") == "1234ms"
                    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "1234ms"
                    assert await connection.fetchval("SHOW log_parameter_max_length_on_error") == "0"
            finally:
                await beside.close()
        finally:
            await database.close()
        assert [each["role"] for each in pooler.startups] == [ROLE, ROLE]


@pytest.mark.usefixtures("at_home")
async def test_a_login_that_may_not_be_the_servers_role_is_no_way_in(
    tmp_path: Path, database_url: str
) -> None:
    login = f"login_{uuid4().hex[:12]}"
    files = certificate(tmp_path, HOST)
    owner = await asyncpg.connect(database_url)
    await owner.execute(f"CREATE ROLE {login} LOGIN")
    try:
        async with pooling(database_url, files) as pooler:
            url = through(pooler.port, database_url, f"sslmode=verify-full&sslrootcert={files[0]}", login)
            database = Database(url, min_size=1, max_size=1, lock_timeout_ms=1000)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await database.open()
    finally:
        await owner.execute(f"DROP ROLE {login}")
        await owner.close()
