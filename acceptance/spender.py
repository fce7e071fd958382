"""Processes that spend: a provider who keeps a bill, and machines that reserve, call him and settle.

    python -m acceptance.spender provider SEED
    python -m acceptance.spender machine NAME SEED PORT PLAN

The provider writes a call into his bill before he answers, as a real one does; some of his answers never
arrive. A machine speaks to the ledger as the server does, through its SQL functions, and may be killed at any
moment. It prints nothing: what is true is in the bill and in the tables.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg

# --- the provider ---------------------------------------------------------------------------------------


class Provider:
    """Answers one JSON line with another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._bill: list[tuple[str, int]] = []
        self._denied: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to its end."""
        with suppress(OSError):
            while line := await reader.readline():
                answer = self._answer(json.loads(line))
                if answer is None:
                    break
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _answer(self, asked: dict[str, Any]) -> object | None:
        match asked:
            case {"bill_from": int(first)}:
                return {"bill": self._bill[first:], "denied": self._denied}
            case {"denied": str(scope)}:
                self._denied[scope] += 1
                return {}
            case {"call": str(call), "most": int(most)}:
                return self._called(call, most)
            case _:
                return None

    def _called(self, call: str, most: int) -> dict[str, int] | None:
        chance = self._rng.random()
        if chance < 0.02:
            return {"refused": 429}
        cost = self._rng.randint(most // 4, most)
        self._bill.append((call, cost))
        if chance < 0.05:
            return None  # the answer is lost on its way
        if chance < 0.07:
            return {"at_most": self._rng.randint(cost, most)}  # cut: a bound is known
        return {"cost": cost}


async def provide(seed: int) -> None:
    """Serve until killed; the first line of the output is the port."""
    provider = Provider(random.Random(seed))
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- a machine --------------------------------------------------------------------------------------------

_RESERVE = "SELECT status, granted FROM myhealth.reserve($1, $2, $3, $4, $5, $6, 0, $7, 10, 1, 10, $8)"
_SETTLE = (
    "SELECT status FROM myhealth.settle($1, $2, $3, $4, '{}', '{}', '{}', $5, $5, $6, NULL, NULL, "
    "1, $7, 1, 0, 0, 0, $8, $9, $10, $11, NULL)"
)
_ACCEPT = (
    "SELECT (r.claim).epoch, (r.claim).next_n FROM myhealth.accept_turn("
    "$1, $2, $3, 'h', 'm', '[]', NULL, 'started', $4, false, '{}', 5) r"
)
_CLAIM = (
    "SELECT c.session_id, c.epoch, c.next_n FROM (SELECT array_agg(f.session_id) s, array_agg(f.epoch) e "
    "FROM myhealth.claimable_sessions($1, '{}', $2, 50) f) f, myhealth.claim_sessions($1, '{}', f.s, f.e) c "
    "WHERE f.s IS NOT NULL"
)


class Machine:
    """One incarnation: it takes the sessions of its plan, and later those of others that have died."""

    def __init__(self, pool: asyncpg.Pool, plan: dict[str, Any], port: int, rng: random.Random) -> None:
        self._pool = pool
        self._plan = plan
        self._port = port
        self._rng = rng
        self._me = uuid4()
        self._live: dict[UUID, asyncio.Task[None]] = {}

    async def run(self, name: str) -> None:
        """Spend until killed."""
        await self._pool.execute(
            "SELECT myhealth.register_machine($1, $2, interval '10 minutes')", name, self._me
        )
        for session, its in self._plan["sessions"].items():
            if its["machine"] == name:
                row = await self._pool.fetchrow(
                    _ACCEPT, UUID(its["user"]), UUID(session), UUID(its["turn"]), self._me
                )
                if row is not None and row["epoch"] is not None:
                    self._take(UUID(session), row["epoch"], row["next_n"])
        while True:
            for row in await self._pool.fetch(_CLAIM, self._me, list(self._live)):
                self._take(*row)
            await asyncio.sleep(0.2)

    def _take(self, session: UUID, epoch: int, next_n: int) -> None:
        task = asyncio.create_task(self._spend(session, epoch, next_n))
        self._live[session] = task
        task.add_done_callback(lambda _: self._live.pop(session, None))

    async def _spend(self, session: UUID, epoch: int, n: int) -> None:
        its = self._plan["sessions"][str(session)]
        limits = json.dumps(its["limits"])
        turn = UUID(its["turn"])
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while True:
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", self._port)
            call, prompt = uuid4(), self._rng.randint(100, 400)
            status, granted = await self._pool.fetchrow(  # pyright: ignore[reportGeneralTypeIssues]
                _RESERVE, call, session, self._me, epoch, turn, prompt, self._rng.randint(50, 100), limits
            )
            if status == "lost":
                return
            if status != "ok":
                await _ask(connection, {"denied": status})
                await asyncio.sleep(0.05)
                continue
            answer = await _ask(connection, {"call": str(call), "most": granted})
            state, charge = _closing(answer)
            if answer is None:
                connection[1].close()
                connection = None
            settled = await self._pool.fetchval(
                _SETTLE, session, self._me, epoch, turn, n, b"{}", prompt // 4, call, state, charge, prompt
            )
            if settled != "settled":
                return
            n += 1


def _closing(answer: dict[str, int] | None) -> tuple[str, int | None]:
    match answer:
        case {"refused": _}:
            return "released", None
        case {"cost": cost}:
            return "settled", cost
        case {"at_most": bound}:
            return "estimated", bound
        case _:
            return "estimated", None


async def _ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], question: dict[str, Any]
) -> dict[str, Any] | None:
    reader, writer = connection
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except OSError:
        return None
    return json.loads(line) if line else None


async def spend(name: str, seed: int, port: int, plan: dict[str, Any]) -> None:
    """Run a machine until it is killed."""
    pool = await asyncpg.create_pool(plan["database"], min_size=8, max_size=8)
    await Machine(pool, plan, port, random.Random(seed)).run(name)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provider", seed]:
            asyncio.run(provide(int(seed)))
        case ["machine", name, seed, port]:
            asyncio.run(spend(name, int(seed), int(port), json.load(sys.stdin)))
        case _:
            raise SystemExit(__doc__)
