"""What the asking user has spent, and what is left."""

from __future__ import annotations

import datetime as dt

import msgspec
from starlette.responses import Response

from agent_backend.db import ledger
from agent_backend.db.ledger import Account, UsageRow
from agent_backend.prices import micros
from agent_backend.web.operations import Call, operation, reply


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """An account of a day or a month (UTC). Money is in millionths of a US dollar.

    `estimated` is the part of `spent` whose exact price nobody has told: what a cut or cancelled call cost at
    most. `reserved` is set aside for calls under way. `limit` and `left` are null where nothing is limited.
    """

    starts: dt.date
    resets_at: dt.datetime
    spent_usd_micros: int
    estimated_usd_micros: int
    reserved_usd_micros: int
    limit_usd_micros: int | None
    left_usd_micros: int | None
    turns: int
    model_calls: int
    input_tokens: int
    output_tokens: int


class AgentUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent with one agent."""

    agent: str
    day: Spent
    month: Spent


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a user has spent, with all agents and with each one used this month."""

    day: Spent
    month: Spent
    agents: list[AgentUsage]


@operation(
    "GET",
    "/v1/me/usage",
    summary="Read what was spent",
    description="Days and months are UTC's. When nothing is left, messages are refused with 402.",
    tag="usage",
    replies={200: Usage},
    problems=(503,),
)
async def get_usage(call: Call[None, None]) -> Response:
    """Answer with the user's accounts."""
    settings = call.services.settings
    rows = await ledger.read_usage(call.services.database, call.user_id)
    total = rows[0] if rows else UsageRow("", dt.datetime.now(dt.UTC).date(), Account(), Account())
    agents = call.services.agents
    return reply(
        Usage(
            day=_day(total, micros(settings.user_usd_per_day)),
            month=_month(total, micros(settings.user_usd_per_month)),
            agents=[
                AgentUsage(
                    agent=row.agent,
                    day=_day(
                        row,
                        agents[row.agent].budget.usd_micros_per_user_day if row.agent in agents else None,
                    ),
                    month=_month(row, None),
                )
                for row in rows[1:]
            ],
        )
    )


def _day(row: UsageRow, limit: int | None) -> Spent:
    return _spent(row.day, "user_day", row.date, row.date, limit)


def _month(row: UsageRow, limit: int | None) -> Spent:
    return _spent(row.month, "user_month", row.date.replace(day=1), row.date, limit)


def _spent(
    account: Account, scope: ledger.Scope, starts: dt.date, today: dt.date, limit: int | None
) -> Spent:
    return Spent(
        starts=starts,
        resets_at=ledger.resets_at(scope, dt.datetime(today.year, today.month, today.day, tzinfo=dt.UTC)),
        spent_usd_micros=account.spent,
        estimated_usd_micros=account.estimated,
        reserved_usd_micros=account.reserved,
        limit_usd_micros=limit,
        left_usd_micros=_left(limit, account.spent + account.reserved),
        turns=account.turns,
        model_calls=account.calls,
        input_tokens=account.prompt_tokens,
        output_tokens=account.output_tokens,
    )


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


OPERATIONS = (get_usage,)
