"""Migrations: numbered .sql files in two phases, so that a rollback stays possible.

`NNNN_name.pre.sql` runs before the release that brings it; the code of the release before must work on
its result. `NNNN_name.post.sql` (drops, tightened constraints) runs with the *next* release: a release
that has just gone live only notes it. A database newer than the code is accepted.

`migrate` connects as the role that owns the schema, not as the server's role.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import asyncpg
import msgspec

from agent_backend.db.dsn import connect
from agent_backend.db.pool import Connection
from agent_backend.errors import DeploymentMismatch, MigrationError

Phase: TypeAlias = Literal["pre", "post"]

_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.(pre|post)\.sql$")
_LOCK_KEY = 7_233_470_001
"""Advisory lock: two deploys never migrate at once."""

_BOOKKEEPING = """
CREATE SCHEMA IF NOT EXISTS myhealth;
CREATE TABLE IF NOT EXISTS myhealth.migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    seen_with text NOT NULL,
    applied_at timestamptz
);
"""


class Migration(msgspec.Struct, frozen=True):
    """One file."""

    name: str
    phase: Phase
    sql: str
    checksum: str


class Plan(NamedTuple):
    """What a run does: files to apply now in order, and `post` files only noted for the next release."""

    apply: list[Migration]
    note: list[Migration]


def folder() -> Path:
    """Return the folder of the migration files: in the installed package, or beside src/."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent.parent / "migrations"


def load(directory: Path | None = None) -> list[Migration]:
    """Read the migration files in order. Raises MigrationError on a name that does not fit."""
    found: list[Migration] = []
    for path in sorted((directory or folder()).glob("*.sql")):
        match = _NAME.match(path.name)
        if match is None:
            raise MigrationError(
                f"migration file {path.name!r} has a wrong name",
                hint="name it NNNN_words.pre.sql or .post.sql",
            )
        text = path.read_text(encoding="utf-8")
        phase: Phase = "pre" if match[2] == "pre" else "post"
        found.append(Migration(path.name, phase, text, hashlib.sha256(text.encode()).hexdigest()))
    return found


def plan(files: list[Migration], known: dict[str, tuple[str, str, bool]], release: str) -> Plan:
    """Decide what to run. `known` maps name -> (checksum, release it was first seen with, applied).

    On an empty database everything runs at once: there is no older code to protect. Raises
    MigrationError when a file that was applied has changed since.
    """
    fresh = not any(applied for _, _, applied in known.values())
    to_apply: list[Migration] = []
    to_note: list[Migration] = []
    for file in files:
        checksum, seen_with, applied = known.get(file.name, ("", release, False))
        if applied:
            if checksum != file.checksum:
                raise MigrationError(
                    f"migration {file.name} has changed since it was applied",
                    hint="restore the file and put the change into a new migration",
                )
        elif file.phase == "pre" or fresh or seen_with != release:
            to_apply.append(file)
        else:
            to_note.append(file)
    return Plan(to_apply, to_note)


async def migrate(
    dsn: str, *, release: str, environment: str, app: str, directory: Path | None = None
) -> list[str]:
    """Apply what is due and return the names applied.

    Raises MigrationError, or DeploymentMismatch when the database is another deployment's.
    """
    files = load(directory)
    connection = await connect(dsn, command_timeout=300)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
        await _not_anothers(connection, environment, app)
        await connection.execute(_BOOKKEEPING)
        due = plan(files, await _known(connection), release)
        for file in due.note:
            await _record(connection, file, release, applied=False)
        for file in due.apply:
            await _apply(connection, file, release)
        await _claim_deployment(connection, environment, app)
        return [file.name for file in due.apply]
    finally:
        await connection.close()


async def _not_anothers(connection: Connection, environment: str, app: str) -> None:
    """Raise DeploymentMismatch before anything is changed: a wrong DATABASE_URL is somebody else's data."""
    if await connection.fetchval("SELECT to_regclass('myhealth.deployment')") is None:
        return
    row = await connection.fetchrow("SELECT environment, app FROM myhealth.deployment")
    if row is not None:
        check_deployment(row, environment, app)


async def _known(connection: Connection) -> dict[str, tuple[str, str, bool]]:
    rows = await connection.fetch(
        "SELECT name, checksum, seen_with, applied_at IS NOT NULL AS applied FROM myhealth.migrations"
    )
    return {row["name"]: (row["checksum"], row["seen_with"], row["applied"]) for row in rows}


async def _apply(connection: Connection, file: Migration, release: str) -> None:
    async with connection.transaction():
        try:
            await connection.execute(file.sql)
        except asyncpg.PostgresError as error:
            raise MigrationError(
                f"migration {file.name} failed: {error}",
                hint="nothing of this file was kept; mend it and run again",
            ) from error
        await _record(connection, file, release, applied=True)


async def _record(connection: Connection, file: Migration, release: str, *, applied: bool) -> None:
    await connection.execute(
        """INSERT INTO myhealth.migrations (name, checksum, seen_with, applied_at)
            VALUES ($1, $2, $3, CASE WHEN $4 THEN now() END)
            ON CONFLICT (name) DO UPDATE
                SET applied_at = coalesce(myhealth.migrations.applied_at, excluded.applied_at),
                    checksum = excluded.checksum""",
        file.name,
        file.checksum,
        release,
        applied,
    )


async def _claim_deployment(connection: Connection, environment: str, app: str) -> None:
    """Write the marker that keeps staging off production's database, or check the one that is there."""
    await connection.execute(
        "INSERT INTO myhealth.deployment (environment, app) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        environment,
        app,
    )
    row = await connection.fetchrow("SELECT environment, app FROM myhealth.deployment")
    check_deployment(row, environment, app)


def check_deployment(row: asyncpg.Record | None, environment: str, app: str) -> None:
    """Raise DeploymentMismatch unless the database's marker names this environment and app."""
    if row is None or (row["environment"], row["app"]) != (environment, app):
        found = "no deployment" if row is None else f"{row['app']} in {row['environment']}"
        raise DeploymentMismatch(
            f"the database belongs to {found}, not to {app} in {environment}",
            hint="point DATABASE_URL at this environment's own database, or mend ENVIRONMENT and APP_NAME",
        )


async def pending(connection: Connection, directory: Path | None = None) -> list[str]:
    """Return the `pre` migrations this release needs that the database lacks."""
    applied = {
        row["name"]
        for row in await connection.fetch("SELECT name FROM myhealth.migrations WHERE applied_at IS NOT NULL")
    }
    return [file.name for file in load(directory) if file.phase == "pre" and file.name not in applied]


async def verify(connection: Connection, environment: str, app: str, directory: Path | None = None) -> None:
    """Check that this release can work with the database and may.

    Raises MigrationError when migrations are missing, DeploymentMismatch when it is another deployment's.
    """
    try:
        missing = await pending(connection, directory)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        missing = ["all of them"]
    if missing:
        raise MigrationError(
            f"the database lacks migrations: {', '.join(missing)}", hint="run `agent-backend migrate`"
        )
    row = await connection.fetchrow("SELECT environment, app FROM myhealth.deployment")
    check_deployment(row, environment, app)
