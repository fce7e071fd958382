"""Small steps that the tests of the durability laws are made of."""

from __future__ import annotations

from uuid import UUID, uuid4

from agent_backend.db import leases
from agent_backend.db import sessions as store
from agent_backend.db.leases import Claim
from agent_backend.db.pool import Database

RUN_STARTED = b'{"type":"RUN_STARTED","threadId":"t","runId":"r"}'


class Owner:
    """A machine as the database sees it."""

    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.name = name
        self.incarnation = uuid4()

    async def register(self, lease: float = 60.0) -> Owner:
        async with self.database.pool.acquire() as connection:
            await leases.register(connection, self.name, self.incarnation, lease)
        return self

    async def expire(self) -> None:
        """Let this machine's lease lie in the past."""
        async with self.database.pool.acquire() as connection:
            await leases.beat(connection, self.name, self.incarnation, -1.0)

    async def accept(
        self,
        user: UUID,
        session: UUID,
        *,
        turn: UUID | None = None,
        text: str = "hello",
        on_busy: str | None = None,
        live: bool = False,
        dead: list[UUID] | None = None,
        max_user_turns: int | None = None,
    ) -> tuple[UUID, store.Accepted]:
        turn_id = turn or uuid4()
        accepted = await store.accept(
            self.database,
            user_id=user,
            session_id=session,
            turn_id=turn_id,
            body_hash=text.encode(),
            message_id=str(turn_id),
            content=f'[{{"type":"text","text":"{text}"}}]',
            on_busy=on_busy,
            run_started=RUN_STARTED,
            incarnation=self.incarnation,
            live=live,
            dead=dead or [],
            max_queue=5,
            max_user_turns=max_user_turns,
        )
        return turn_id, accepted

    async def claim(self, dead: list[UUID] | None = None, live: list[UUID] | None = None) -> list[Claim]:
        seen = await leases.claimable(self.database, self.incarnation, dead or [], live or [], 10)
        return await leases.claim(self.database, self.incarnation, dead or [], seen)

    def settlement(
        self, claim: Claim, first: int, last: int, *, final: bool = False, messages: int = 1
    ) -> store.Settlement:
        assert claim.turn_id is not None
        return store.Settlement(
            session_id=claim.session_id,
            incarnation=self.incarnation,
            epoch=claim.epoch,
            turn_id=claim.turn_id,
            messages=[store.NewMessage(f"m{last}.{i}", "assistant", "[]") for i in range(messages)],
            first=first,
            last=last,
            events=b"\n".join(b'{"type":"X"}' for _ in range(first, last + 1)),
            final_state="completed" if final else None,
        )


async def make_session(database: Database, user: UUID) -> UUID:
    """Make a session of this user."""
    session = uuid4()
    await store.put_agent_version(database, b"v", "coach", '{"on_busy":"enqueue"}')
    put = await store.put(database, user, session, agent="coach", version=b"v", title=None, body_hash=b"h")
    assert put is not None
    return session
