"""The money ledger in Postgres: reserve before a model call, close with its settle, read.

Amounts are micro-dollars. A call is closed by `sessions.settle`, in the step's own transaction.
The laws: docs/design/budgets.md.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import msgspec

from agent_backend.db.pool import Database
from agent_backend.errors import LeaseLost

Scope: TypeAlias = Literal["user_day", "user_month", "agent_day", "global_day", "global_month"]
SCOPES: frozenset[str] = frozenset(Scope.__args__)

_RESERVE = "SELECT * FROM reserve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
_CHARGE_ORPHAN = "SELECT charge_orphan()"
_EXPIRE_CALLS = "SELECT expire_calls($1, $2)"
_TEND = "SELECT * FROM tend_global($1)"
_READ_USAGE = "SELECT * FROM read_usage($1, $2)"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A model call that is about to be made. Prices: micro-dollars per token, the dearest that may apply."""

    call_id: UUID
    session_id: UUID
    incarnation: UUID
    epoch: int
    turn_id: UUID
    prompt_bytes: int
    """Of everything that is sent and counted."""
    overhead_tokens: int
    """What the provider may add to a prompt."""
    max_tokens: int
    least_tokens: int
    """An answer that may be no longer than this is not worth having."""
    input_price: Decimal
    output_price: Decimal
    limits: str
    """JSON, see `tightest` in 0009_ledger."""
    instead_of: UUID | None = None
    """A call that failed and may have been billed: it is charged as estimated."""


class Reserved(NamedTuple):
    """What became of an `Ask`: `granted` is reserved and `max_tokens` fit in it, or `over` names the cap."""

    over: Scope | None
    granted: int
    max_tokens: int
    resets_at: dt.datetime | None


class CallEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a reserved call ended. `charge` None: as much as was reserved."""

    call_id: UUID
    state: Literal["settled", "estimated", "released"]
    charge: int | None = None
    prompt_bytes: int | None = None
    request_id: str | None = None


class GlobalUse(NamedTuple):
    """What all users together have spent and reserved, this day and this month (UTC)."""

    day_spent: int
    day_reserved: int
    month_spent: int
    month_reserved: int


class Account(NamedTuple):
    """What was used in a day or a month (UTC). `estimated` is a part of `spent`."""

    spent: int = 0
    estimated: int = 0
    reserved: int = 0
    calls: int = 0
    turns: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class UsageRow(NamedTuple):
    """A user's accounts with one agent; agent '' is the sum. `date` is the day's."""

    agent: str
    date: dt.date
    day: Account
    month: Account


async def reserve(database: Database, ask: Ask, now: dt.datetime | None = None) -> Reserved:
    """Reserve a call's worst case; sent again under its id it answers the same. Raises LeaseLost."""
    row = await database.fetchrow(
        _RESERVE,
        ask.call_id,
        ask.session_id,
        ask.incarnation,
        ask.epoch,
        ask.turn_id,
        ask.prompt_bytes,
        ask.overhead_tokens,
        ask.max_tokens,
        ask.least_tokens,
        ask.input_price,
        ask.output_price,
        ask.limits,
        ask.instead_of,
        now,
    )
    assert row is not None
    status, granted, max_tokens, resets_at = row
    if status == "lost":
        raise LeaseLost
    if status == "ok":
        return Reserved(None, granted, max_tokens, None)
    assert status in SCOPES
    return Reserved(status, 0, 0, resets_at)


async def charge_orphan(database: Database) -> UUID | None:
    """Charge one call that its owner left open when it lost the session; None: there is none."""
    return await database.fetchval(_CHARGE_ORPHAN)


async def expire_calls(database: Database, before: dt.datetime, limit: int) -> int:
    """Delete closed calls of earlier months that ended before then; return how many."""
    return await database.fetchval(_EXPIRE_CALLS, before, limit)


async def tend_global(database: Database, now: dt.datetime | None = None) -> GlobalUse:
    """Let machines that are gone give back what they had drawn of the global caps, and read those."""
    row = await database.fetchrow(_TEND, now)
    assert row is not None
    return GlobalUse(*row)


async def read_usage(database: Database, user_id: UUID, now: dt.datetime | None = None) -> list[UsageRow]:
    """Return a user's accounts, the sum first; empty before the first call."""
    rows = await database.fetch(_READ_USAGE, user_id, now)
    return [UsageRow(row["agent"], row["day"], _account(row, "day"), _account(row, "month")) for row in rows]


def _account(row: asyncpg.Record, period: Literal["day", "month"]) -> Account:
    return Account(*(row[f"{period}_{name}"] for name in Account._fields))


def resets_at(scope: Scope, now: dt.datetime) -> dt.datetime:
    """Return when a cap is fresh again: days and months are UTC's."""
    midnight = now.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if scope.endswith("month"):
        return (midnight.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
    return midnight + dt.timedelta(days=1)
