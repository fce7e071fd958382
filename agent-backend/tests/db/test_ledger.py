"""The ledger's functions against a model in Python, and the laws that a sequence of calls does not show."""

from __future__ import annotations

import asyncio
import datetime as dt
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent_backend.db import leases, ledger
from agent_backend.db import sessions as store
from agent_backend.db.leases import Claim
from agent_backend.db.ledger import Ask, CallEnd
from agent_backend.db.pool import Database
from agent_backend.errors import LeaseLost

from .owners import Owner, make_session

NOON = dt.datetime(2026, 11, 9, 12, tzinfo=dt.UTC)
CAPS = {"user_day": 4_000, "user_month": 9_000, "global_day": 7_000, "global_month": 20_000}
AGENT_DAY = 3_500


def limits(*, agent_day: int = AGENT_DAY, **caps: int) -> str:
    known = {"coach": {"day": agent_day, "prompt": 100, "input": "1", "least": 50}}
    return msgspec.json.encode({**CAPS, **caps, "agents": known}).decode()


class Holder(NamedTuple):
    """A session with its owner and the claim it is held by."""

    owner: Owner
    claim: Claim

    def ask(self, call: UUID, **more: Any) -> Ask:
        assert self.claim.turn_id is not None
        asked: dict[str, Any] = {
            "prompt_bytes": 300,
            "overhead_tokens": 0,
            "max_tokens": 70,
            "least_tokens": 20,
            "input_price": Decimal(1),
            "output_price": Decimal(10),
            "limits": limits(),
            **more,
        }
        return Ask(
            call_id=call,
            session_id=self.claim.session_id,
            incarnation=self.owner.incarnation,
            epoch=self.claim.epoch,
            turn_id=self.claim.turn_id,
            **asked,
        )

    async def settle(self, n: int, end: CallEnd) -> store.Settled:
        step = self.owner.settlement(self.claim, n, n)
        return await store.settle(self.owner.database, msgspec.structs.replace(step, call=end))


async def held(owner: Owner, user: UUID, session: UUID) -> Holder:
    _, accepted = await owner.accept(user, session)
    assert accepted.claim is not None
    return Holder(owner, accepted.claim)


@pytest.fixture
async def one(database: Database) -> Owner:
    return await Owner(database, "one").register()


@pytest.fixture
async def holder(one: Owner) -> Holder:
    user = uuid4()
    return await held(one, user, await make_session(one.database, user))


FAR = {"user_day": 10**9, "user_month": 10**9, "global_day": 10**9, "global_month": 10**9}


async def sums(database_url: str) -> tuple[int, int, int]:
    """Return what is reserved, charged, and charged as estimated, over all calls."""
    connection = await asyncpg.connect(database_url)
    try:
        row = await connection.fetchrow(
            "SELECT coalesce(sum(reserved) FILTER (WHERE state = 'reserved'), 0)::bigint, "
            "coalesce(sum(charged), 0)::bigint, "
            "coalesce(sum(charged) FILTER (WHERE state = 'estimated'), 0)::bigint FROM myhealth.model_calls"
        )
    finally:
        await connection.close()
    assert row is not None
    return (row[0], row[1], row[2])


# --- one call ---


async def test_a_reservation_is_prompt_and_answer_at_their_dearest(holder: Holder) -> None:
    reserved = await ledger.reserve(holder.owner.database, holder.ask(uuid4()))
    assert (reserved.over, reserved.granted, reserved.max_tokens) == (None, 300 + 700, 70)


async def test_an_answer_shrinks_to_what_is_left_but_not_below_what_is_useful(holder: Holder) -> None:
    database, call = holder.owner.database, uuid4()
    short = await ledger.reserve(database, holder.ask(call, limits=limits(user_day=550)))
    assert (short.granted, short.max_tokens) == (550, 25)
    await holder.settle(2, CallEnd(call_id=call, state="settled", charge=51))
    later = await ledger.reserve(database, holder.ask(uuid4(), limits=limits(user_day=550)))
    assert later.over == "user_day"
    assert later.resets_at is not None
    assert later.resets_at > dt.datetime.now(dt.UTC)


async def test_reserving_again_under_the_same_id_reserves_nothing_more(
    holder: Holder, database_url: str
) -> None:
    call = uuid4()
    first = await ledger.reserve(holder.owner.database, holder.ask(call))
    assert await ledger.reserve(holder.owner.database, holder.ask(call)) == first
    assert await sums(database_url) == (1000, 0, 0)


async def test_a_call_that_is_closed_is_not_reserved_again(holder: Holder) -> None:
    call = uuid4()
    await ledger.reserve(holder.owner.database, holder.ask(call))
    await holder.settle(2, CallEnd(call_id=call, state="settled", charge=400))
    with pytest.raises(LeaseLost):
        await ledger.reserve(holder.owner.database, holder.ask(call))


@pytest.mark.parametrize(
    ("end", "after"),
    [
        (("settled", 400), (0, 400, 0)),
        (("estimated", 600), (0, 600, 600)),
        (("estimated", None), (0, 1000, 1000)),
        (("released", None), (0, 0, 0)),
    ],
)
async def test_a_settle_closes_the_call_once_however_often_it_is_sent(
    holder: Holder, database_url: str, end: tuple[Any, int | None], after: tuple[int, int, int]
) -> None:
    call = uuid4()
    await ledger.reserve(holder.owner.database, holder.ask(call))
    # Sent again, and once more with another step, as after a settle that was refused.
    for place in (2, 2, 3):
        await holder.settle(place, CallEnd(call_id=call, state=end[0], charge=end[1]))
    assert await sums(database_url) == after
    rows = await ledger.read_usage(holder.owner.database, holder.claim.user_id)
    assert [(row.agent, row.day.reserved, row.day.spent, row.day.estimated) for row in rows] == [
        ("", *after),
        ("coach", *after),
    ]


async def test_a_settle_that_is_refused_closes_nothing(holder: Holder, database_url: str) -> None:
    call = uuid4()
    await ledger.reserve(holder.owner.database, holder.ask(call))
    stale = holder._replace(claim=holder.claim._replace(epoch=holder.claim.epoch - 1))
    with pytest.raises(LeaseLost):
        await stale.settle(2, CallEnd(call_id=call, state="settled", charge=1))
    assert await sums(database_url) == (1000, 0, 0)


async def test_the_next_call_of_a_session_is_bounded_by_what_the_last_one_was(holder: Holder) -> None:
    database, call = holder.owner.database, uuid4()
    await ledger.reserve(database, holder.ask(call, limits=limits(**FAR)))
    step = holder.owner.settlement(holder.claim, 2, 2)
    usage = store.StepUsage(model_calls=1, input_tokens=40, cache_read_input_tokens=30, output_tokens=5)
    end = CallEnd(call_id=call, state="settled", charge=90, prompt_bytes=300)
    await store.settle(database, msgspec.structs.replace(step, usage=usage, call=end))
    grown = await ledger.reserve(database, holder.ask(uuid4(), prompt_bytes=350, max_tokens=1))
    assert grown.granted == 70 + 50 + 10
    shrunk = await ledger.reserve(database, holder.ask(uuid4(), prompt_bytes=299, max_tokens=1))
    assert shrunk.granted == 299 + 10, "what is shorter is another conversation"


@pytest.mark.parametrize("scope", ["user_day", "user_month", "agent_day", "global_day", "global_month"])
async def test_each_cap_counts_what_is_reserved_and_what_is_spent(holder: Holder, scope: str) -> None:
    database, call = holder.owner.database, uuid4()
    caps = limits(**{**FAR, "agent_day": 10**9, scope: 1500})
    granted = [
        await ledger.reserve(database, holder.ask(each, limits=caps)) for each in (call, uuid4(), uuid4())
    ]
    assert [(each.granted, each.over) for each in granted] == [(1000, None), (500, None), (0, scope)]
    await holder.settle(2, CallEnd(call_id=call, state="settled", charge=700))
    last = await ledger.reserve(database, holder.ask(uuid4(), prompt_bytes=101, limits=caps))
    assert last.over == scope, "300 came back, and 301 are needed"
    assert last.resets_at is not None
    assert (last.resets_at.day == 1) >= scope.endswith("month")
    fits = await ledger.reserve(database, holder.ask(uuid4(), prompt_bytes=100, limits=caps))
    assert (fits.granted, fits.max_tokens) == (300, 20)


async def test_a_message_is_refused_when_what_is_spent_leaves_no_room(holder: Holder) -> None:
    database, call, other = holder.owner.database, uuid4(), holder.claim.user_id
    session = await make_session(database, other)

    async def status(caps: str) -> str:
        turn = uuid4()
        accepted = await store.accept(
            database,
            user_id=other,
            session_id=session,
            turn_id=turn,
            body_hash=b"",
            message_id=str(turn),
            content="[]",
            on_busy=None,
            run_started=b"{}",
            incarnation=holder.owner.incarnation,
            live=False,
            dead=[],
            max_queue=9,
            limits=caps,
        )
        return accepted.status

    await ledger.reserve(database, holder.ask(call, limits=limits(**FAR)))
    assert await status(limits(user_day=1000)) == "created", "what is reserved may come back"
    await holder.settle(2, CallEnd(call_id=call, state="settled", charge=1000))
    for scope in ("user_day", "user_month", "global_day", "global_month"):
        assert await status(limits(**{**FAR, scope: 1149})) == scope
        assert await status(limits(**{**FAR, scope: 1150})) == "created"
    assert await status(limits(agent_day=1149)) == "agent_day"


# --- lost sessions ---


async def test_who_lost_the_session_reserves_nothing(holder: Holder, database: Database) -> None:
    two = await Owner(database, "two").register()
    await holder.owner.expire()
    await two.claim(dead=[holder.owner.incarnation])
    with pytest.raises(LeaseLost):
        await ledger.reserve(database, holder.ask(uuid4()))


@pytest.mark.parametrize("by", ["the next call", "the sweep"])
async def test_what_a_dead_owner_left_open_is_charged_as_estimated(
    holder: Holder, database: Database, database_url: str, by: str
) -> None:
    await ledger.reserve(database, holder.ask(uuid4()))
    assert await ledger.charge_orphan(database) is None, "its owner still has the session"
    two = await Owner(database, "two").register()
    await holder.owner.expire()
    [claim] = await two.claim(dead=[holder.owner.incarnation])
    if by == "the sweep":
        assert await ledger.charge_orphan(database) is not None
        assert await ledger.charge_orphan(database) is None
        assert await sums(database_url) == (0, 1000, 1000)
    else:
        await ledger.reserve(database, Holder(two, claim).ask(uuid4()))
        assert await sums(database_url) == (1000, 1000, 1000)


async def test_what_is_open_in_a_session_that_was_given_back_is_an_orphan(
    holder: Holder, database: Database, database_url: str
) -> None:
    """Its user may never come back, and then no greater epoch ever tells."""
    await ledger.reserve(database, holder.ask(uuid4()))
    claim, owner = holder.claim, holder.owner
    await leases.release(database, claim.session_id, owner.incarnation, claim.epoch, 2, force=True)
    assert await ledger.charge_orphan(database) is not None
    assert await sums(database_url) == (0, 1000, 1000)
    with pytest.raises(LeaseLost):
        await ledger.reserve(database, holder.ask(uuid4()))


async def test_an_attempt_that_may_be_billed_is_charged_when_the_next_is_reserved(
    holder: Holder, database_url: str
) -> None:
    first = uuid4()
    await ledger.reserve(holder.owner.database, holder.ask(first))
    await ledger.reserve(holder.owner.database, holder.ask(uuid4(), instead_of=first))
    assert await sums(database_url) == (1000, 1000, 1000)


# --- many at once ---


async def test_streams_of_many_users_on_two_machines_stay_within_every_cap(
    database: Database, database_url: str, one: Owner
) -> None:
    two = await Owner(database, "two").register()
    users = [uuid4() for _ in range(4)]
    holders = [
        await held(owner, user, await make_session(database, user)) for owner in (one, two) for user in users
    ]
    reserved = await asyncio.gather(
        *(ledger.reserve(database, each.ask(uuid4())) for each in holders for _ in range(3))
    )
    granted = sum(each.granted for each in reserved)
    assert granted <= CAPS["global_day"]
    assert granted > CAPS["global_day"] - 500, "and hardly anything of it lies idle"
    assert (await sums(database_url))[0] == granted
    assert {each.over for each in reserved} >= {None, "global_day"}


async def test_nobody_waits_for_a_call_under_way(holder: Holder, database_url: str) -> None:
    """Between reserve and settle no lock is held: another session of the same user and machine goes on."""
    await ledger.reserve(holder.owner.database, holder.ask(uuid4()))
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(5):
            await connection.execute("SELECT FROM myhealth.spending FOR UPDATE NOWAIT")
            await connection.execute("SELECT FROM myhealth.allotments FOR UPDATE NOWAIT")
    finally:
        await connection.close()


async def test_a_machine_that_is_gone_gives_back_what_it_drew(holder: Holder, database: Database) -> None:
    call = uuid4()
    await ledger.reserve(database, holder.ask(call))
    await holder.settle(2, CallEnd(call_id=call, state="settled", charge=100))
    await holder.owner.expire()
    use = await ledger.tend_global(database)
    assert (use.day_spent, use.day_reserved, use.month_spent) == (100, 0, 100)
    two = await Owner(database, "two").register()
    other = uuid4()
    taker = await held(two, other, await make_session(database, other))
    rest = await ledger.reserve(
        database, taker.ask(uuid4(), max_tokens=10_000, limits=limits(user_day=10**9, user_month=10**9))
    )
    assert rest.granted == AGENT_DAY


async def test_a_user_sees_no_other_account(holder: Holder, database: Database) -> None:
    await ledger.reserve(database, holder.ask(uuid4()))
    assert await ledger.read_usage(database, uuid4()) == []
    async with database.as_user(uuid4()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM myhealth.spending") == 0
        assert await connection.fetchval("SELECT count(*) FROM myhealth.model_calls") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("SELECT count(*) FROM myhealth.allotments")


# --- any sequence, against a model ---


class Open(NamedTuple):
    """A call that the model of the ledger knows to be open."""

    session: int
    day: dt.date
    granted: int


class Books:
    """The ledger as it should be: plain sums, one user, one agent, three machines."""

    def __init__(self) -> None:
        self.open: dict[UUID, Open] = {}
        self.spent: dict[dt.date, int] = {}

    def used(self, since: dt.date) -> int:
        """Return what is spent and reserved since a day."""
        spent = sum(micros for day, micros in self.spent.items() if day >= since)
        return spent + sum(call.granted for call in self.open.values() if call.day >= since)

    def close(self, call: UUID, charge: int) -> None:
        day = self.open.pop(call).day
        self.spent[day] = self.spent.get(day, 0) + charge


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["reserve", "reserve", "reserve", "settle", "estimate", "release", "die", "day", "tend"]
        ),
        st.integers(0, 2),
        st.integers(1, 100),
    ),
    min_size=5,
    max_size=40,
)


async def _play(database: Database, steps: list[tuple[str, int, int]]) -> None:
    owners = [await Owner(database, f"m{uuid4()}").register() for _ in range(3)]
    user = uuid4()
    holders = [await held(owner, user, await make_session(database, user)) for owner in owners]
    places = [2] * 3
    now, books = NOON, Books()
    far = limits(global_day=10**9, global_month=10**9)
    for what, i, size in steps:
        mine = [call for call, its in books.open.items() if its.session == i]
        match what:
            case "day":
                now += dt.timedelta(days=size % 4)
            case "reserve":
                for call in mine:  # a session has one call at a time
                    places[i] += 1
                    await holders[i].settle(places[i], CallEnd(call_id=call, state="estimated"))
                    books.close(call, books.open[call].granted)
                await _reserve(database, holders[i], books, i, size, now, far)
            case "settle" | "estimate" | "release":
                for call in mine:
                    granted = books.open[call].granted
                    state: Any = {"settle": "settled", "estimate": "estimated"}.get(what, "released")
                    charge = None if what == "release" else granted * size // 100
                    places[i] += 1
                    await holders[i].settle(places[i], CallEnd(call_id=call, state=state, charge=charge))
                    books.close(call, charge or 0)
            case "die":
                holders[i], places[i] = await _taken_over(database, holders[i])
                for call in mine:
                    assert await ledger.charge_orphan(database) == call
                    books.close(call, books.open[call].granted)
            case _:
                await ledger.tend_global(database, now)
        await _agrees(database, user, books, now)


async def _reserve(
    database: Database, holder: Holder, books: Books, i: int, size: int, now: dt.datetime, caps: str
) -> None:
    call, day = uuid4(), now.date()
    free = min(
        CAPS["user_day"] - books.used(day),
        CAPS["user_month"] - books.used(day.replace(day=1)),
        AGENT_DAY - books.used(day),
    )
    reserved = await ledger.reserve(
        database, holder.ask(call, prompt_bytes=3 * size, max_tokens=3 * size, limits=caps), now
    )
    most, least = 33 * size, 3 * size + 10 * min(20, 3 * size)
    if free < least:
        assert reserved.over is not None
        return
    assert (reserved.over, reserved.granted) == (None, min(most, free))
    assert reserved.max_tokens == min(3 * size, (reserved.granted - 3 * size) // 10)
    books.open[call] = Open(i, day, reserved.granted)


async def _taken_over(database: Database, holder: Holder) -> tuple[Holder, int]:
    """Let another machine take the session, as after a crash."""
    await holder.owner.expire()
    heir = await Owner(database, f"m{uuid4()}").register()
    [claim] = [
        claim
        for claim in await heir.claim(dead=[holder.owner.incarnation])
        if claim.session_id == holder.claim.session_id
    ]
    return Holder(heir, claim), claim.next_n


async def _agrees(database: Database, user: UUID, books: Books, now: dt.datetime) -> None:
    rows = await ledger.read_usage(database, user, now)
    day = now.date()
    for row in rows:
        assert row.day.spent + row.day.reserved == books.used(day)
        assert row.month.spent + row.month.reserved == books.used(day.replace(day=1))
    assert books.used(day) <= AGENT_DAY
    assert books.used(day.replace(day=1)) <= CAPS["user_month"]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(steps=_STEPS)
def test_any_sequence_of_calls_deaths_and_days_agrees_with_plain_sums(
    steps: list[tuple[str, int, int]], database_url: str
) -> None:
    async def run() -> None:
        database = Database(database_url, min_size=1, max_size=2, lock_timeout_ms=5000)
        await database.open()
        try:
            await _play(database, steps)
        finally:
            await database.close()

    asyncio.run(run())
