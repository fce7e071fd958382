"""Row level security and the functions, tried one by one: whatever B sends, A's rows are not there for it.

The pairs come from the catalogue. A table or function that a later migration makes is tried as well, or fails
here with the list in catalogue.py to be extended.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from agent_backend.db.pool import ROLE, Database

from . import catalogue
from .catalogue import SYSTEM_FUNCTIONS, WITHOUT_USERS, Table, Unknown
from .owners import Owner, make_session

A, B = uuid4(), uuid4()
CANARY = "canary-of-a"
LEAST_PAIRS = 150

Act: TypeAlias = Callable[[], Awaitable[Any]]


class Tried:
    """Counts what was tried and keeps what came through."""

    def __init__(self) -> None:
        self.pairs = 0
        self.leaks: list[str] = []

    async def hidden(self, what: str, act: Act) -> None:
        """`act` must touch nothing, or be refused for want of a privilege."""
        self.pairs += 1
        try:
            touched = await act()
        except asyncpg.InsufficientPrivilegeError:
            return
        if touched not in (0, "UPDATE 0", "DELETE 0", "INSERT 0 0"):
            self.leaks.append(f"{what}: {touched!r}")

    def report(self) -> None:
        sys.stdout.write(f"pairs tried: {self.pairs}, leaks: {len(self.leaks)}\n")
        assert self.leaks == []


@pytest.fixture
async def owner(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """Yield a superuser's connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def as_server(owner: asyncpg.Connection, user: UUID | None) -> AsyncGenerator[None]:
    """Be the server's role, with the claims of a user or none; what is done here is undone."""
    transaction = owner.transaction()
    await transaction.start()
    try:
        claims = "" if user is None else f'{{"sub":"{user}"}}'
        await owner.execute(f"SET LOCAL ROLE {ROLE}; SET LOCAL search_path = myhealth")
        await owner.execute("SELECT set_config('request.jwt.claims', $1, true)", claims)
        yield
    finally:
        await transaction.rollback()


async def user_tables(owner: asyncpg.Connection) -> list[Table]:
    return [table for table in await catalogue.tables(owner) if table.user_column is not None]


async def test_every_table_has_an_owner_or_a_reason(owner: asyncpg.Connection) -> None:
    found = await catalogue.tables(owner)
    unknown = {table.name for table in found if table.user_column is None} - set(WITHOUT_USERS)
    assert not unknown, (
        f"tables without a column of a user: {sorted(unknown)}. Give them user_id, or add them with a reason "
        "to WITHOUT_USERS in agent-backend/tests/db/catalogue.py"
    )
    for table in found:
        if table.user_column is None:
            continue
        assert table.name not in WITHOUT_USERS, f"{table.name} does hold a user's rows"
        assert table.secured, f"ALTER TABLE myhealth.{table.name} ENABLE ROW LEVEL SECURITY is missing"
        granted = await owner.fetchval(
            "SELECT count(*) FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = $1::regrole"
            " AND c.oid = ('myhealth.' || $2)::regclass",
            ROLE,
            table.name,
        )
        # With row level security, no policy and no grant, functions are the only way to it.
        assert table.policies or not granted, f"{table.name} has no policy"
    assert set(WITHOUT_USERS) <= {table.name for table in found}, "a reason for a table that is gone"


async def test_a_table_that_points_to_a_users_rows_has_an_owner_itself(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "SELECT conrelid::regclass::text AS referring, confrelid::regclass::text AS referred"
        " FROM pg_constraint WHERE contype = 'f' AND connamespace = 'myhealth'::regnamespace"
    )
    owned = {f"myhealth.{table.name}" for table in await user_tables(owner)}
    assert [
        row["referring"] for row in rows if row["referred"] in owned and row["referring"] not in owned
    ] == []


async def test_policies_are_the_servers_and_speak_of_the_user(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch("SELECT * FROM pg_policies WHERE schemaname = 'myhealth'")
    owned = {table.name: table.user_column for table in await user_tables(owner)}
    for row in rows:
        name = f"{row['tablename']}.{row['policyname']}"
        assert row["roles"] == [ROLE], name
        if row["tablename"] not in owned:
            continue
        for said in filter(None, (row["qual"], row["with_check"])):
            assert f"{owned[row['tablename']]} = " in said, name
            assert "current_user_id()" in said, name
        assert row["qual"] or row["with_check"], f"{name} says nothing"
        assert row["permissive"] == "PERMISSIVE"


async def test_views_ask_with_the_readers_rights(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "SELECT relname, coalesce(reloptions, '{}') AS options, relkind::text AS kind FROM pg_class"
        " WHERE relnamespace = 'myhealth'::regnamespace AND relkind IN ('v', 'm')"
    )
    for row in rows:
        assert row["kind"] == "v", f"{row['relname']}: row level security knows no materialised views"
        assert "security_invoker=true" in row["options"], row["relname"]


async def test_no_row_of_a_is_there_for_b_or_for_nobody(owner: asyncpg.Connection) -> None:
    tried = Tried()
    for table in await user_tables(owner):
        await catalogue.seed(owner, table, A)
        columns = await owner.fetch(
            "SELECT attname AS name FROM pg_attribute WHERE attrelid = ('myhealth.' || $1)::regclass"
            " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity = ''",
            table.name,
        )
        for user in (B, None):
            await _try_table(owner, tried, table, [row["name"] for row in columns], user)
        assert await owner.fetchval(f"SELECT count(*) FROM myhealth.{table.name}") == 1
    for view in await owner.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'myhealth'::regnamespace AND relkind = 'v'"
    ):
        async with as_server(owner, B):
            statement = f"SELECT count(*) FROM myhealth.{view['relname']}"
            await tried.hidden(statement, partial(owner.fetchval, statement))
    tried.report()
    assert tried.pairs >= LEAST_PAIRS


async def _try_table(
    owner: asyncpg.Connection, tried: Tried, table: Table, columns: list[str], user: UUID | None
) -> None:
    of_a = f"\"{table.user_column}\" = '{A}'"
    statements = [
        f"DELETE FROM myhealth.{table.name}",
        f"DELETE FROM myhealth.{table.name} WHERE {of_a}",
        *(f'UPDATE myhealth.{table.name} SET "{name}" = "{name}"' for name in columns),
        f"UPDATE myhealth.{table.name} SET \"{table.user_column}\" = '{B}' WHERE {of_a}",
    ]
    for query in ("", f" WHERE {of_a}"):
        statement = f"SELECT count(*) FROM myhealth.{table.name}{query}"
        async with as_server(owner, user):
            await tried.hidden(statement, partial(owner.fetchval, statement))
    for statement in statements:
        async with as_server(owner, user):
            await tried.hidden(statement, partial(owner.execute, statement))
    async with as_server(owner, user):

        async def insert() -> str:
            await catalogue.insert_as_given(owner, table, A)
            return "inserted"

        await tried.hidden(f"INSERT INTO {table.name}", insert)


async def test_b_cannot_hand_its_own_row_to_a(owner: asyncpg.Connection) -> None:
    """A row that may be updated may not change hands."""
    tried = Tried()
    for table in await user_tables(owner):
        await catalogue.seed(owner, table, B)
        async with as_server(owner, B):
            statement = f"UPDATE myhealth.{table.name} SET \"{table.user_column}\" = '{A}'"
            await tried.hidden(statement, partial(owner.execute, statement))
    tried.report()


async def test_its_own_rows_are_there_for_a(owner: asyncpg.Connection) -> None:
    """The counterpart, without which the tests above could pass by hiding everything from everybody."""
    readable = 0
    for table in await user_tables(owner):
        if await owner.fetchval(f"SELECT has_table_privilege('{ROLE}', 'myhealth.{table.name}', 'SELECT')"):
            await catalogue.seed(owner, table, A)
            async with as_server(owner, A):
                assert await owner.fetchval(f"SELECT count(*) FROM myhealth.{table.name}") == 1, table.name
            readable += 1
    assert readable >= 10


# --- functions ------------------------------------------------------------------------------------------


class Conversation:
    """A session of A whose turn waits for a device: the ids that B will try."""

    def __init__(self, session: UUID, turn: UUID, machine: UUID) -> None:
        self.session = session
        self.turn = turn
        self.arguments: dict[str, Any] = {
            "p_session": session,
            "p_session_id": session,
            "p_id": session,
            "p_thread": session,
            "p_sessions": [session],
            "p_turn": turn,
            "p_turn_id": turn,
            "p_call": "call-of-a",
            "p_ids": ["call-of-a"],
            "p_me": machine,
            "p_incarnation": machine,
            "p_hash bytea": CANARY.encode(),
            "p_version bytea": b"v",
        }


@pytest.fixture
async def conversation(database: Database, owner: asyncpg.Connection) -> Conversation:
    machine = await Owner(database, "m").register()
    session = await make_session(database, A)
    turn, _ = await machine.accept(A, session, text=CANARY)
    # Everything else that A may have, so that whatever a function reads, there is something to find.
    for table in await user_tables(owner):
        if table.name not in ("sessions", "turns", "messages", "segments"):
            known = {"session_id": session, "turn_id": turn, "id": _id_for(table.name)}
            await catalogue.seed(owner, table, A, text=CANARY, **known)
    await owner.execute("UPDATE myhealth.tool_calls SET state = 'pending', input = '{}', kind = 'device'")
    await owner.execute("UPDATE myhealth.sessions SET title = $1", CANARY)
    await owner.execute("UPDATE myhealth.turns SET state = 'waiting_device'")
    return Conversation(session, turn, machine.incarnation)


def takes_user(function: catalogue.Function) -> bool:
    return any(name == "p_user" for name, _ in function.arguments)


def _id_for(table: str) -> Any:
    return "call-of-a" if table == "tool_calls" else uuid4()


async def dump(owner: asyncpg.Connection, user: UUID) -> dict[str, list[str]]:
    """Return all rows of a user as text, by table."""
    rows: dict[str, list[str]] = {}
    for table in await user_tables(owner):
        query = f'SELECT t::text FROM myhealth.{table.name} t WHERE "{table.user_column}" = $1 ORDER BY 1'
        rows[table.name] = [row[0] for row in await owner.fetch(query, user)]
    return rows


async def test_functions_that_take_a_user_give_b_nothing_of_a(
    owner: asyncpg.Connection, conversation: Conversation
) -> None:
    before = await dump(owner, A)
    assert all(before.values()), "A has something of everything"
    tried = 0
    for function in await catalogue.functions(owner):
        if not function.callable or not takes_user(function):
            continue
        async with as_server(owner, B):
            told = await _told(owner, function, conversation.arguments | {"p_user": B})
            for secret in (CANARY, str(A), str(conversation.session), str(conversation.turn), "call-of-a"):
                assert secret not in told, f"{function.signature} told B: {told}"
            await owner.execute("RESET ROLE")
            assert await dump(owner, A) == before, f"{function.signature} changed rows of A"
        tried += 1
    sys.stdout.write(f"functions tried: {tried}, leaks: 0\n")
    assert tried >= 15


async def _told(owner: asyncpg.Connection, function: catalogue.Function, known: dict[str, Any]) -> str:
    """Return what the function answered, as text; what it refuses with an error it has also undone."""
    refused: asyncpg.DataError | None = None
    for json in ("[]", "{}"):
        statement, values = catalogue.call_of(function, known, json)
        try:
            async with owner.transaction():
                return " ".join(map(str, await owner.fetch(statement, *values)))
        except (asyncpg.RaiseError, asyncpg.IntegrityConstraintViolationError) as error:
            return str(error)
        except asyncpg.DataError as error:
            refused = error
    raise Unknown(f"{function.signature}: {refused}. Add its argument to ARGUMENTS in catalogue.py")


async def test_a_definer_function_takes_a_user_or_has_a_reason(owner: asyncpg.Connection) -> None:
    found = {each.name for each in await catalogue.functions(owner) if each.definer and each.callable}
    unknown = [
        each.signature
        for each in await catalogue.functions(owner)
        if each.name in found and not takes_user(each) and each.name not in SYSTEM_FUNCTIONS
    ]
    assert not unknown, (
        f"SECURITY DEFINER and callable by the server: {unknown}. Give them p_user, or add them with a "
        "reason to SYSTEM_FUNCTIONS in agent-backend/tests/db/catalogue.py"
    )
    both = [each.name for each in await catalogue.functions(owner) if takes_user(each)]
    assert not set(both) & set(SYSTEM_FUNCTIONS), "takes a user, so it is tried"
    assert set(SYSTEM_FUNCTIONS) <= found, "a reason for a function that is gone"


def test_what_is_unknown_is_named() -> None:
    function = catalogue.Function(1, "f", "f(point)", True, [], False, True, [("p_where", "point")])
    with pytest.raises(Unknown, match=r"f\(point\): no value for p_where \(point\). Add it to ARGUMENTS"):
        catalogue.call_of(function, {})
