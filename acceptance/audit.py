"""An independent look at the tables after a storm: it knows the promises and nothing of the server's code."""

from __future__ import annotations

import json
from collections import Counter

import asyncpg

from .conversation import Broken

_UNFINISHED = "SELECT id, state FROM myhealth.turns WHERE state NOT IN ('completed', 'failed', 'cancelled')"
_MESSAGE_GAPS = """
    SELECT session_id FROM myhealth.messages m JOIN myhealth.sessions s ON s.id = m.session_id
    GROUP BY session_id, s.last_message
    HAVING count(*) <> max(n) OR min(n) <> 1 OR max(n) <> s.last_message
        OR count(DISTINCT m.id) <> count(*)"""
_USER_MESSAGES = """
    SELECT t.id, count(m.n) FROM myhealth.turns t
    LEFT JOIN myhealth.messages m ON m.session_id = t.session_id AND m.turn_id = t.id AND m.role = 'user'
    GROUP BY t.id HAVING count(m.n) <> 1"""
_SEGMENT_GAPS = """
    SELECT session_id, epoch, first FROM (
        SELECT session_id, epoch, first,
               coalesce(lag(last) OVER (PARTITION BY session_id, epoch ORDER BY last), 0) AS before
        FROM myhealth.segments) s
    WHERE first <> before + 1"""
_DEAD_WRITES = """
    SELECT session_id, epoch, last FROM (
        SELECT session_id, epoch, last, pg_xact_commit_timestamp(xmin) AS at,
               max(pg_xact_commit_timestamp(xmin)) OVER (
                   PARTITION BY session_id ORDER BY epoch, last ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW
               ) AS latest_before
        FROM myhealth.segments) s
    WHERE at < latest_before"""
_UNANSWERED_CALLS = """
    SELECT m.session_id, b ->> 'id' FROM myhealth.messages m, json_array_elements(m.content) b
    WHERE m.role = 'assistant' AND b ->> 'type' = 'tool_use' AND 1 <> (
        SELECT count(*) FROM myhealth.messages r, json_array_elements(r.content) c
        WHERE r.session_id = m.session_id AND r.role = 'tool' AND c ->> 'tool_use_id' = b ->> 'id')"""


async def audit(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy, accepted: set[str]
) -> None:
    """Check the tables. Raises Broken."""
    for query, what in (
        (_UNFINISHED, "unfinished turns"),
        (_MESSAGE_GAPS, "messages lost, doubled or reordered"),
        (_USER_MESSAGES, "turns without exactly one user message"),
        (_SEGMENT_GAPS, "gaps or overlaps in the log"),
        (_DEAD_WRITES, "writes of a dead epoch"),
        (_UNANSWERED_CALLS, "tool calls without exactly one result"),
    ):
        rows = await connection.fetch(query)
        if rows:
            raise Broken(f"{what}: {[tuple(row) for row in rows[:5]]}")
    known = {str(row[0]) for row in await connection.fetch("SELECT id FROM myhealth.turns")}
    if accepted != known:
        raise Broken(
            f"accepted but not there: {accepted - known}; there but not accepted: {known - accepted}"
        )
    await _audit_ends(connection, known)


async def _audit_ends(
    connection: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy, turns: set[str]
) -> None:
    """Every turn began once and ended once, in the log itself."""
    began: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    rows = await connection.fetch(
        "SELECT session_id, events FROM myhealth.segments "
        "WHERE through IS NULL ORDER BY session_id, epoch, last"
    )
    running: dict[str, str] = {}
    for session, events in rows:
        for raw in events.split(b"\n"):
            if raw.startswith(b'{"type":"RUN_STARTED"'):
                running[session] = json.loads(raw)["runId"]
                began[running[session]] += 1
            elif raw.startswith((b'{"type":"RUN_FINISHED"', b'{"type":"RUN_ERROR"')):
                ended[running.pop(session)] += 1
    for name, counts in (("began", began), ("ended", ended)):
        if set(counts) != turns or set(counts.values()) - {1}:
            raise Broken(f"turns that {name} other than once: {[t for t in turns if counts[t] != 1]}")
