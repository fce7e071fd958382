"""Everything that is held about a user, as a zip of JSON lines: one snapshot, under row level security.

What is exported follows from the catalogue: every table with a column `user_id`, column by column, so that a
table that comes later is not forgotten. `INTERNAL` names what is left out and why, `SHAPED` what is put into
words, `ABOUT` says what each file is. `schema_of` describes the result (`protocol/export.schema.json`).

Reading and sending are apart: a phone may take minutes, and a snapshot that is held so long keeps Postgres
from cleaning up. So the archive is read at the database's speed into an unnamed file, which is sent at the
reader's.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import tempfile
import zipfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import IO, Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from agent_backend.db.export_texts import ABOUT, LIESMICH, README
from agent_backend.db.pool import Database
from agent_backend.errors import TooManyRequests

FORMAT = "myhealth-export"
VERSION = 1
SCHEMA_ID = f"urn:myhealth:export:{VERSION}"

_CHUNK = 64 * 1024
_LARGE_ROWS: Final = 50
_SMALL_ROWS: Final = 1000
_MAX_BYTES = 2 * 1024**3
"""The unnamed file's; it lies on the machine's own disk."""
_AGAIN_SECONDS = 30.0
_CANCEL_SECONDS = 2.0

INTERNAL: dict[str, dict[str, str]] = {
    "*": {
        "user_id": "the same in every row; it stands once, in manifest.json",
        "body_hash": "recognises a request that is sent again; says nothing that its body does not",
    },
    "sessions": {
        "owner": "which process runs the session at this moment",
        "epoch": "counts the owners of the session",
        "settled_epoch": "a position in the event log",
        "settled_n": "a position in the event log",
        "floor_epoch": "a position in the event log",
        "floor_n": "a position in the event log",
    },
    "turns": {
        "start_epoch": "a position in the event log",
        "start_n": "a position in the event log",
        "attempts": "how often a server had to begin again",
    },
    "model_calls": {
        "epoch": "counts the owners of the session",
        "machine": "which process made the call",
    },
    "segments": {
        "first": "part of each event's cursor",
        "last": "part of each event's cursor",
        "epoch": "part of each event's cursor",
        "events": "exported one by one, as `event`",
        "settled_epoch": "a position in the event log",
        "settled_n": "a position in the event log",
    },
    "tool_calls": {
        "answered_hash": "recognises an answer that is sent again",
        "parked_epoch": "a position in the event log",
        "parked_n": "a position in the event log",
    },
}
"""Table (`*`: every one) -> column -> why it is not exported."""


class Shape(NamedTuple):
    """How a table is exported where it is not column by column: `columns` replaces some, `more` adds."""

    columns: Mapping[str, str] = MappingProxyType({})
    more: str = ""
    joins: str = ""


_METRIC = "m.name AS metric, m.unit AS unit"
_SOURCE = "c.name AS source, c.device AS device"
_JOIN_METRIC = " LEFT JOIN myhealth.health_metrics m ON m.id = t.metric_id"
_JOIN_SOURCE = " LEFT JOIN myhealth.health_sources c ON c.user_id = t.user_id AND c.id = t.source_id"

SHAPED: dict[str, Shape] = {
    "health_quantities": Shape(
        {"metric_id": _METRIC, "source_id": _SOURCE}, joins=_JOIN_METRIC + _JOIN_SOURCE
    ),
    "health_sleep": Shape({"source_id": _SOURCE}, joins=_JOIN_SOURCE),
    "health_workouts": Shape({"source_id": _SOURCE}, joins=_JOIN_SOURCE),
    "health_days": Shape(
        {
            "metric_id": _METRIC,
            "sources": "ARRAY(SELECT c.name FROM myhealth.health_sources c WHERE c.user_id = t.user_id"
            " AND c.id = ANY (t.sources) ORDER BY c.name) AS sources",
        },
        joins=_JOIN_METRIC,
    ),
    # A marker of the log has no events: it says that everything up to message `through` was settled.
    "segments": Shape(
        more="t.epoch || '-' || (t.first + coalesce(e.n, 1) - 1) AS cursor, e.event::json AS event",
        joins=" LEFT JOIN LATERAL string_to_table(nullif(convert_from(t.events, 'UTF8'), ''), chr(10))"
        " WITH ORDINALITY AS e (event, n) ON true",
    ),
}

_VERSIONS = (
    "SELECT encode(v.hash, 'hex') AS hash, v.name, v.created_at, v.frozen -> 'device_tools' AS device_tools"
    " FROM myhealth.agent_versions v WHERE v.frozen ->> 'device_tools' IS NOT NULL"
    " AND v.hash IN (SELECT s.agent_version FROM myhealth.sessions s WHERE s.user_id = $1) ORDER BY v.hash"
)
"""No table of users' rows, but with texts that this user's app has declared."""

_COLUMNS = """
SELECT u.name AS table, a.attname AS column, format_type(a.atttypid, NULL) AS type, a.attnotnull AS required,
    (SELECT array_agg(k.attname ORDER BY array_position(i.indkey::int2[], k.attnum))
     FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = ANY (i.indkey)
     WHERE i.indrelid = a.attrelid AND i.indisprimary)::text[] AS key
FROM myhealth.user_tables() u
JOIN pg_attribute a ON a.attrelid = ('myhealth.' || quote_ident(u.name))::regclass
WHERE a.attnum > 0 AND NOT a.attisdropped
ORDER BY u.name, a.attnum
"""


class Part(NamedTuple):
    """One file of the archive: `select` gives its rows for the user `$1`."""

    name: str
    select: str
    required: frozenset[str]
    """Columns that are never null."""

    @property
    def lines(self) -> str:
        """The statement that gives the rows as JSON, a line each (json columns keep their line ends)."""
        return f"SELECT translate(row_to_json(r)::text, E'\\n\\r', '  ') FROM ({self.select}) r"

    @property
    def batch(self) -> int:
        """Rows that are read at once; some kinds are kilobytes long."""
        return _SMALL_ROWS if self.name.startswith("health_") else _LARGE_ROWS


async def parts(connection: asyncpg.Connection) -> list[Part]:
    """Return the files of an archive, from the catalogue."""
    tables: dict[str, list[asyncpg.Record]] = {}
    for row in await connection.fetch(_COLUMNS):
        tables.setdefault(row["table"], []).append(row)
    made = [_part(table, rows) for table, rows in tables.items()]
    made.append(Part("agent_versions", _VERSIONS, frozenset({"hash", "name", "created_at", "device_tools"})))
    return sorted(made)


def _part(table: str, rows: Sequence[asyncpg.Record]) -> Part:
    shape = SHAPED.get(table, Shape())
    internal = {**INTERNAL["*"], **INTERNAL.get(table, {})}
    chosen: list[str] = []
    for row in rows:
        column: str = row["column"]
        if column in internal:
            continue
        quoted = '"' + column.replace('"', '""') + '"'
        plain = f"encode(t.{quoted}, 'hex') AS {quoted}" if row["type"] == "bytea" else f"t.{quoted}"
        chosen.append(shape.columns.get(column, plain))
    if shape.more:
        chosen.append(shape.more)
    key = ", ".join(f't."{column}"' for column in rows[0]["key"])
    order = f"{key}, e.n" if table == "segments" else key
    select = f'SELECT {", ".join(chosen)} FROM myhealth."{table}" t{shape.joins} WHERE t.user_id = $1'
    required = {row["column"] for row in rows if row["required"]}
    return Part(table, f"{select} ORDER BY {order}", frozenset(required | {"cursor"}))


# --- the archive ------------------------------------------------------------------------------------


class _Spool:
    """The archive on its way: written by one thread at a time, read from the front; nameless on disk."""

    def __init__(self) -> None:
        # Not seekable for zipfile: what is written may have been sent.
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._closed = False
        self.written = 0

    def write(self, data: bytes) -> int:
        if self._closed:
            return len(data)
        if self.written + len(data) > _MAX_BYTES:
            raise OSError("the export is larger than its file may be")
        self._file.write(data)
        self.written += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def read(self, offset: int) -> bytes:
        return os.pread(self._file.fileno(), min(_CHUNK, self.written - offset), offset)

    def close(self) -> None:
        """Let go of the file; what is written from here on is dropped."""
        self._closed = True
        self._file.close()


class Export:
    """One archive being made. `chunks` may be asked for once; `close` ends everything at any point."""

    def __init__(self, connection: asyncpg.Connection, user_id: UUID, release: str) -> None:
        self._connection = connection
        self._user_id = user_id
        self._release = release
        self._spool = _Spool()
        self._zip = zipfile.ZipFile(self._spool, "w", zipfile.ZIP_DEFLATED)
        self._grown = asyncio.Event()
        self._thread: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._file: IO[bytes] | None = None
        self._rows: dict[str, int] = {}
        self.created_at = dt.datetime.now(dt.UTC)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the archive as it grows. Raises what reading raises: the archive is then not complete."""
        self._task = task = asyncio.create_task(self._make(), name="export")
        task.add_done_callback(lambda _: self._grown.set())
        offset = 0
        while True:
            self._grown.clear()
            done = task.done()
            while offset < self._spool.written:
                chunk = self._spool.read(offset)
                offset += len(chunk)
                yield chunk
            if done:
                task.result()
                return
            await self._grown.wait()

    async def close(self) -> None:
        """End: the query is cut, the file is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Not cut at once: that would leave a query that waits for a lock waiting. This cancels it first.
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await self._connection.close(timeout=_CANCEL_SECONDS)
        self._connection.terminate()
        if self._thread is not None:
            await asyncio.wait([self._thread])
        # zipfile insists on ending what it has begun.
        self._spool.close()
        if self._file is not None:
            self._file.close()
        self._zip.close()

    async def _make(self) -> None:
        files = await parts(self._connection)
        schema = await schema_of(self._connection, files)
        for name, text in (("README.txt", README), ("LIESMICH.txt", LIESMICH)):
            await self._in_thread(self._write_file, name, text.encode())
        await self._in_thread(self._write_file, "schema.json", _pretty(schema))
        for part in files:
            await self._write_part(part)
        await self._connection.close()
        await self._in_thread(self._write_file, "manifest.json", _pretty(self._manifest()))
        await self._in_thread(self._zip.close)

    async def _write_part(self, part: Part) -> None:
        cursor = await self._connection.cursor(part.lines, self._user_id)
        self._file = file = self._zip.open(part.name + ".jsonl", "w", force_zip64=True)
        count = 0
        while rows := await cursor.fetch(part.batch):
            count += len(rows)
            await self._in_thread(file.write, "".join(f"{row[0]}\n" for row in rows).encode())
        await self._in_thread(file.close)
        self._rows[part.name] = count

    def _write_file(self, name: str, data: bytes) -> None:
        self._zip.writestr(name, data)

    async def _in_thread(self, work: Any, *args: Any) -> None:
        """Compress beside the event loop: streams go on meanwhile."""
        self._thread = asyncio.ensure_future(asyncio.to_thread(work, *args))
        await asyncio.shield(self._thread)
        self._grown.set()

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "schema": SCHEMA_ID,
            "created_at": self.created_at.isoformat(),
            "release": self._release,
            "user_id": str(self._user_id),
            "files": [
                {"name": f"{name}.jsonl", "rows": rows, "about": ABOUT.get(name, {}).get("", name)}
                for name, rows in self._rows.items()
            ],
        }


async def begin(database: Database, user_id: UUID, release: str) -> Export:
    """Take a snapshot of a user's data, to be read by the `Export` that is returned.

    It has a connection beside the pool: exports take none from turns. Raises TooManyRequests while another
    export of this user is being read, and what connecting raises.
    """
    connection = await database.connect()
    try:
        # Never ended by us: closing the connection ends it, and nothing was written.
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The thread that compresses may have to wait for its turn; the pool's limit is for who holds locks.
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        if not await connection.fetchval("SELECT begin_export($1)", user_id):
            raise TooManyRequests(
                "Another export is being made.", retry_after=_AGAIN_SECONDS, limit="exports"
            )
        return Export(connection, user_id, release)
    except BaseException:
        connection.terminate()
        raise


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


# --- the schema -------------------------------------------------------------------------------------

_TYPES: dict[str, dict[str, Any]] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": {"type": "string"},
    "int2": {"type": "integer"},
    "int4": {"type": "integer"},
    "int8": {"type": "integer"},
    "float8": {"type": "number"},
    "numeric": {"type": "number"},
    "bool": {"type": "boolean"},
    "timestamptz": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "json": {},
    "jsonb": {},
    "text[]": {"type": "array", "items": {"type": "string"}},
    "uuid[]": {"type": "array", "items": {"type": "string", "format": "uuid"}},
    "int4[]": {"type": "array", "items": {"type": "integer"}},
}


async def schema_of(connection: asyncpg.Connection, files: Sequence[Part]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12): of manifest.json itself, and in `$defs` of a line of each file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "manifest.json of a myHealth export",
        "description": "Each file NAME.jsonl holds one JSON object a line (UTF-8), as $defs/NAME says.",
        "type": "object",
        "properties": {
            "format": {"const": FORMAT},
            "version": {"const": VERSION},
            "schema": {"const": SCHEMA_ID},
            "created_at": {"type": "string", "format": "date-time"},
            "release": {"type": "string"},
            "user_id": {"type": "string", "format": "uuid"},
            "files": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"enum": [f"{part.name}.jsonl" for part in files]},
                        "rows": {"type": "integer", "minimum": 0},
                        "about": {"type": "string"},
                    },
                    "required": ["name", "rows", "about"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["format", "version", "schema", "created_at", "release", "user_id", "files"],
        "additionalProperties": False,
        "$defs": {part.name: await _line_of(connection, part) for part in files},
    }


async def _line_of(connection: asyncpg.Connection, part: Part) -> dict[str, Any]:
    attributes = (await connection.prepare(part.select)).get_attributes()
    about = ABOUT.get(part.name, {})
    properties: dict[str, Any] = {}
    for attribute in attributes:
        kind = dict(_TYPES.get(attribute.type.name, {}))
        if "type" in kind and attribute.name not in part.required:
            kind["type"] = [kind["type"], "null"]
        if attribute.name in about:
            kind["description"] = about[attribute.name]
        properties[attribute.name] = kind
    return {
        "title": about.get("", part.name),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
