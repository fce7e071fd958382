"""Write protocol/export.schema.json from a migrated database: `python scripts/export_schema.py`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg
import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from acceptance.stack import postgres, with_database  # noqa: E402

from agent_backend.db.export import parts, schema_of  # noqa: E402
from agent_backend.db.migrate import migrate  # noqa: E402

TARGET = ROOT / "protocol" / "export.schema.json"
_NAME = "export_schema"


async def _schema(url: str) -> bytes:
    server = await asyncpg.connect(url)
    await server.execute(f"CREATE DATABASE {_NAME}")
    try:
        made = with_database(url, _NAME)
        await migrate(made, release="schema", environment="development", app="schema")
        connection = await asyncpg.connect(made)
        try:
            schema = await schema_of(connection, await parts(connection))
        finally:
            await connection.close()
    finally:
        await server.execute(f"DROP DATABASE {_NAME} WITH (FORCE)")
        await server.close()
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def main() -> int:
    """Write the file."""
    with postgres() as url:
        TARGET.write_bytes(asyncio.run(_schema(url)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
