"""Who may do what, read from the catalogue: the server's role, everybody, and the roles of Supabase's API."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from agent_backend.db.pool import ROLE, Database

from . import catalogue

SUPABASE_ROLES = ("anon", "authenticated", "service_role")
"""Whom PostgREST answers as; `service_role` passes row level security, so that only grants hold it off."""


@pytest.fixture
async def owner(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """Yield a superuser's connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


# --- the server's role --------------------------------------------------------------------------------------


async def test_the_servers_role_can_do_nothing_to_roles_databases_or_row_security(
    owner: asyncpg.Connection,
) -> None:
    row = await owner.fetchrow("SELECT * FROM pg_roles WHERE rolname = $1", ROLE)
    assert row is not None
    may = [name for name, value in row.items() if value is True and name != "rolinherit"]
    assert may == [], "no LOGIN, SUPERUSER, CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS"


async def test_the_servers_role_owns_nothing(owner: asyncpg.Connection) -> None:
    # Dependencies of all databases of the cluster: 'o' is ownership.
    owned = await owner.fetchval(
        "SELECT count(*) FROM pg_shdepend WHERE refobjid = $1::regrole AND deptype = 'o'", ROLE
    )
    assert owned == 0


async def test_the_servers_role_can_become_nobody_else(owner: asyncpg.Connection) -> None:
    granted = await owner.fetch(
        "SELECT roleid::regrole::text AS role FROM pg_auth_members WHERE member = $1::regrole", ROLE
    )
    assert granted == []
    for each in ("pg_read_all_data", "pg_read_server_files", "pg_monitor", "pg_signal_backend"):
        assert not await owner.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", ROLE, each)


async def test_the_servers_role_cannot_create_anything_that_stays(owner: asyncpg.Connection) -> None:
    creates = await owner.fetch(
        "SELECT nspname FROM pg_namespace WHERE has_schema_privilege($1, oid, 'CREATE')"
        " AND nspname NOT LIKE 'pg\\_temp\\_%' AND nspname NOT LIKE 'pg\\_toast\\_temp\\_%'",
        ROLE,
    )
    assert creates == []
    assert not await owner.fetchval("SELECT has_database_privilege($1, current_database(), 'CREATE')", ROLE)


async def test_the_servers_role_cannot_read_what_passwords_are_kept_in(owner: asyncpg.Connection) -> None:
    for each in ("pg_authid", "pg_user_mapping", "pg_largeobject"):
        assert not await owner.fetchval("SELECT has_table_privilege($1, $2, 'SELECT')", ROLE, each), each


async def test_what_the_servers_role_may_do_to_tables_is_this(owner: asyncpg.Connection) -> None:
    """No TRUNCATE, which knows no row level security; no REFERENCES or TRIGGER; nothing to hand on."""
    rows = await owner.fetch(
        "SELECT c.relname, a.privilege_type, a.is_grantable FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.relnamespace = 'myhealth'::regnamespace AND a.grantee = $1::regrole",
        ROLE,
    )
    assert {row["privilege_type"] for row in rows} <= {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert not any(row["is_grantable"] for row in rows)
    # Who may write may only do so where a policy says whose rows.
    secured = {table.name for table in await catalogue.tables(owner) if table.secured}
    written = {row["relname"] for row in rows if row["privilege_type"] != "SELECT"}
    assert written <= secured


async def test_the_servers_role_does_not_own_what_it_is_kept_from(owner: asyncpg.Connection) -> None:
    """Row level security does not hold for a table's owner, so the owner has to be somebody else."""
    owners = await owner.fetch(
        "SELECT DISTINCT relowner::regrole::text AS name FROM pg_class"
        " WHERE relnamespace = 'myhealth'::regnamespace"
    )
    for row in owners:
        assert not await owner.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", ROLE, row["name"])


async def test_a_connection_of_the_pool_is_that_role(database: Database) -> None:
    row = await database.fetchrow("SELECT current_user AS who, current_setting('is_superuser') AS super")
    assert row is not None
    assert tuple(row) == (ROLE, "off")


async def test_a_statements_arguments_are_never_written_to_the_databases_log(database: Database) -> None:
    """Of the settings that decide about it, this is the only one that a server may set for itself."""
    assert await database.fetchval("SHOW log_parameter_max_length_on_error") == "0"


# --- everybody --------------------------------------------------------------------------------------


async def test_nothing_of_the_schema_is_everybodys(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "SELECT relname AS name, relacl::text AS acl FROM pg_class, aclexplode(relacl) a"
        " WHERE relnamespace = 'myhealth'::regnamespace AND a.grantee = 0"
        " UNION ALL SELECT nspname, nspacl::text FROM pg_namespace, aclexplode(nspacl) a"
        " WHERE nspname = 'myhealth' AND a.grantee = 0"
    )
    assert rows == []


def open_functions(found: list[catalogue.Function]) -> list[str]:
    """Return what is wrong with functions, one line each."""
    wrong: list[str] = []
    for each in found:
        if each.public:
            wrong.append(f"everybody may call {each.signature}: REVOKE EXECUTE ON FUNCTION ... FROM PUBLIC")
        pinned = [setting for setting in each.settings if setting.startswith("search_path=")]
        if each.definer and pinned != ["search_path=myhealth, pg_temp"]:
            wrong.append(f"{each.signature} is SECURITY DEFINER without SET search_path = myhealth, pg_temp")
    return wrong


async def test_functions_are_granted_by_name_and_definers_pin_their_search_path(
    owner: asyncpg.Connection,
) -> None:
    found = await catalogue.functions(owner)
    assert len(found) >= 50
    assert open_functions(found) == []


async def test_a_later_function_without_revoke_is_found(owner: asyncpg.Connection) -> None:
    await owner.execute(
        "CREATE FUNCTION myhealth.forgotten(p_user uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT count(*) FROM myhealth.sessions'"
    )
    wrong = open_functions(await catalogue.functions(owner))
    assert [line.split(":")[0] for line in wrong] == [
        "everybody may call myhealth.forgotten(uuid)",
        "myhealth.forgotten(uuid) is SECURITY DEFINER without SET search_path = myhealth, pg_temp",
    ]


# --- the roles of Supabase's API --------------------------------------------------------------------


@asynccontextmanager
async def supabase(owner: asyncpg.Connection, role: str) -> AsyncGenerator[None]:
    """Be one of the roles that PostgREST answers as; made for this transaction where it does not exist."""
    transaction = owner.transaction()
    await transaction.start()
    try:
        if not await owner.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            await owner.execute(f"CREATE ROLE {role} NOLOGIN {'BYPASSRLS' if role == 'service_role' else ''}")
        # As Supabase sets a project up.
        await owner.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        yield
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("schema_granted", [False, True])
async def test_supabases_api_roles_get_at_nothing(owner: asyncpg.Connection, *, schema_granted: bool) -> None:
    """Also when somebody adds the schema to the API's and grants its use, as the dashboard proposes."""
    tables = await catalogue.tables(owner)
    functions = await catalogue.functions(owner)
    tried = 0
    for role in SUPABASE_ROLES:
        async with supabase(owner, role):
            if schema_granted:
                await owner.execute(f"GRANT USAGE ON SCHEMA myhealth TO {role}")
            await owner.execute(f"SET LOCAL ROLE {role}")
            for statement in [
                *(f"SELECT FROM myhealth.{table.name}" for table in tables),
                *(f"DELETE FROM myhealth.{table.name}" for table in tables),
                *(_call(each) for each in functions if _can_be_called(each)),
            ]:
                tried += 1
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with owner.transaction():
                        await owner.execute(statement)
    sys.stdout.write(f"statements tried: {tried}, leaks: 0\n")
    assert tried > 200


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_a_table_granted_to_supabases_api_by_mistake_still_hides_its_rows(
    owner: asyncpg.Connection, role: str
) -> None:
    """Supabase's guide to custom schemas grants everything; the policies are agent_backend's alone."""
    owned = [table for table in await catalogue.tables(owner) if table.user_column is not None]
    for table in owned:
        await catalogue.seed(owner, table, uuid4())
    async with supabase(owner, role):
        await owner.execute(f"GRANT USAGE ON SCHEMA myhealth TO {role}")
        await owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA myhealth TO {role}")
        await owner.execute(f"SET LOCAL ROLE {role}")
        for table in owned:
            assert await owner.fetchval(f"SELECT count(*) FROM myhealth.{table.name}") == 0, table.name
            assert await owner.execute(f"DELETE FROM myhealth.{table.name}") == "DELETE 0"


def _can_be_called(function: catalogue.Function) -> bool:
    try:
        catalogue.call_of(function, {})
    except catalogue.Unknown:
        return False  # it takes a row type and serves other functions
    return True


def _call(function: catalogue.Function) -> str:
    """Return a call without values: whether it is allowed is looked at first."""
    text, _ = catalogue.call_of(function, {})
    return "SELECT " + re.sub(r"\$\d+::", "NULL::", text.removeprefix("SELECT * FROM ").removesuffix(" AS r"))


async def test_supabases_api_roles_own_no_default_privileges_here(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch("SELECT * FROM pg_default_acl WHERE defaclnamespace = 'myhealth'::regnamespace")
    assert rows == [], "what later migrations make is granted by name"
