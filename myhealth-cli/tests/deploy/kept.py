"""What the database keeps of turns, to hold against what people saw."""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from .stage import Stage

_TURNS = """
SELECT t.id::text, t.state, t.attempts, coalesce((
    SELECT string_agg(block->>'text', '' ORDER BY m.n, place)
    FROM myhealth.messages m, json_array_elements(m.content) WITH ORDINALITY AS blocks(block, place)
    WHERE m.session_id = t.session_id AND m.turn_id = t.id
        AND m.role = 'assistant' AND block->>'type' = 'text'
), '') AS text
FROM myhealth.turns t
"""


class Kept(NamedTuple):
    """A turn: its state, all that was answered, and how many owners have worked on it."""

    state: str
    text: str
    owners: int


async def turns(fly: Stage) -> dict[str, Kept]:
    """Return every turn of staging."""
    lines = (fly.folder / "staging.env").read_text("utf-8").splitlines()
    url = next(each.partition("=")[2] for each in lines if each.startswith("DATABASE_URL="))
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(_TURNS)
    finally:
        await connection.close()
    return {row["id"]: Kept(row["state"], row["text"], row["attempts"]) for row in rows}
