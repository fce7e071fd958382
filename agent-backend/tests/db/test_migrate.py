"""Migrations: phases, refusal of changed files, the deployment marker."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from agent_backend.db.migrate import Migration, load, migrate, pending, plan
from agent_backend.db.pool import Database
from agent_backend.errors import DeploymentMismatch, MigrationError

PRE = Migration("0001_a.pre.sql", "pre", "SELECT 1", "c1")
POST = Migration("0002_b.post.sql", "post", "SELECT 2", "c2")
NEXT = Migration("0003_c.pre.sql", "pre", "SELECT 3", "c3")


def test_an_empty_database_gets_everything() -> None:
    assert plan([PRE, POST], {}, "r1") == ([PRE, POST], [])


def test_a_post_migration_waits_for_the_next_release() -> None:
    known = {PRE.name: ("c1", "r1", True)}
    assert plan([PRE, POST], known, "r2") == ([], [POST])
    known[POST.name] = ("c2", "r2", False)
    assert plan([PRE, POST], known, "r2") == ([], [POST])
    assert plan([PRE, POST, NEXT], known, "r3") == ([POST, NEXT], [])


def test_a_changed_file_is_refused() -> None:
    with pytest.raises(MigrationError, match=r"0001_a\.pre\.sql has changed"):
        plan([PRE], {PRE.name: ("other", "r1", True)}, "r2")


def test_a_misnamed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_wrong.sql").write_text("SELECT 1")
    with pytest.raises(MigrationError, match="wrong name"):
        load(tmp_path)


async def test_a_failing_file_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "9001_x.pre.sql").write_text("CREATE TABLE myhealth.half (); SELECT 1/0;")
    with pytest.raises(MigrationError, match="division by zero"):
        await migrate(
            database_url, release="r2", environment="development", app="myhealth-agents", directory=tmp_path
        )
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT to_regclass('myhealth.half')") is None
    assert await pending(connection, tmp_path) == ["9001_x.pre.sql"]
    await connection.close()


async def test_another_deployments_database_is_not_migrated_either(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "9001_x.pre.sql").write_text("CREATE TABLE myhealth.theirs ();")
    with pytest.raises(DeploymentMismatch):
        await migrate(
            database_url, release="r2", environment="production", app="myhealth-agents", directory=tmp_path
        )
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT to_regclass('myhealth.theirs')") is None
    await connection.close()


async def test_running_again_changes_nothing_and_another_deployment_is_refused(database_url: str) -> None:
    assert await migrate(database_url, release="r1", environment="development", app="myhealth-agents") == []
    with pytest.raises(DeploymentMismatch, match="belongs to myhealth-agents in development"):
        await migrate(database_url, release="r1", environment="production", app="myhealth-agents")


async def test_the_server_role_bypasses_nothing(database: Database) -> None:
    row = await database.fetchrow(
        "SELECT current_user AS me, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    )
    assert row is not None
    assert tuple(row) == ("agent_backend", False)


async def test_an_owner_who_is_no_superuser_migrates_and_serves(database_url: str) -> None:
    """As on Supabase, where `postgres` makes the role: it may then hand it on, and not yet be it."""
    name = f"owner_{uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(database_url)._replace(netloc=f"{name}@"))
    superuser = await asyncpg.connect(database_url)
    try:
        database = await superuser.fetchval("SELECT current_database()")
        before = await superuser.fetchval("SELECT current_setting('server_version_num')::int < 160000")
        # What a creator gets by itself from Postgres 16 on; the role is there already, from other databases.
        options = "ADMIN OPTION" if before else "ADMIN TRUE, INHERIT FALSE, SET FALSE"
        await superuser.execute(
            f"DROP SCHEMA myhealth CASCADE; CREATE ROLE {name} LOGIN CREATEROLE BYPASSRLS;"
            f" GRANT agent_backend TO {name} WITH {options}; ALTER DATABASE {database} OWNER TO {name}"
        )
        assert await migrate(url, release="r1", environment="development", app="myhealth-agents")
        served = Database(url, min_size=1, max_size=1, lock_timeout_ms=1000)
        await served.open()
        assert await served.fetchval("SELECT current_user") == "agent_backend"
        await served.close()
    finally:
        await superuser.execute(
            f"REASSIGN OWNED BY {name} TO current_user; DROP OWNED BY {name} CASCADE; DROP ROLE {name}"
        )
        await superuser.close()
