"""Chaos: clients that check every event they see, faults with seeds, and an audit of the database.

The clients know nothing of the server's insides; the audit reads the tables as a superuser and knows nothing
of the server's code. Both must agree with what the servers told.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg

from .stack import Backend, Site

LEASE = 1.0
"""Seconds; the servers under test are started with it."""
SILENCE = 4.0
"""Seconds without a byte after which a client tries elsewhere: its server may be frozen."""
_TROUBLE = (aiohttp.ClientError, OSError, TimeoutError)


class Slot:
    """A machine: its name stays, its process comes and goes."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.name = name
        self.backend: Backend | None = None

    async def start(self) -> None:
        """Start the process and wait until it serves."""
        env = self._site.environment(
            MACHINE_ID=self.name, LEASE_SECONDS=str(LEASE), GROUP_COMMIT_MS="40", POOL_MIN="1"
        )
        backend = Backend(env)
        await asyncio.to_thread(backend.wait_until_ready)
        self.backend = backend

    def kill(self) -> None:
        """SIGKILL."""
        if self.backend is not None:
            self.backend.kill()
            self.backend.end()
            self.backend = None

    @property
    def url(self) -> str | None:
        """Where it serves; None while it is down."""
        return None if self.backend is None else self.backend.url


# --- clients ----------------------------------------------------------------------------------------


class Broken(AssertionError):
    """A promise was broken; the text says which, with the ids to look at."""


class Conversation:
    """What one client believes, built from events alone, each checked as it comes."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.cursor: tuple[int, int] = (0, 0)
        self.messages: dict[str, dict[str, Any]] = {}
        self.open: set[str] = set()
        self.run: str | None = None
        self.ended: Counter[str] = Counter()
        self.resyncs = 0
        self._joining = False

    @property
    def after(self) -> str:
        """The cursor as the server gave it."""
        return f"{self.cursor[0]}-{self.cursor[1]}"

    def apply(self, event: dict[str, Any]) -> str | None:
        """Take an event; returns the run that it ended. Raises Broken."""
        metadata = event["metadata"]
        if metadata["threadId"] != self.session:
            raise Broken(f"event of {metadata['threadId']} in the stream of {self.session}")
        self._advance(metadata.get("cursor"), event)
        kind: str = event["type"]
        handler = getattr(self, "_on_" + kind.lower(), None)
        if handler is None:
            raise Broken(f"unexpected {kind} in {self.session}")
        return handler(event)

    def _advance(self, text: str | None, event: dict[str, Any]) -> None:
        if text is None:
            if event["type"] not in ("RUN_STARTED", "MESSAGES_SNAPSHOT"):
                raise Broken(f"{event['type']} without a cursor in {self.session}")
            return
        epoch, n = map(int, text.split("-"))
        if (epoch, n) <= self.cursor:
            raise Broken(f"cursor went from {self.after} to {text} in {self.session}")
        self.cursor = (epoch, n)

    def _need(self, condition: object, what: str) -> None:
        if not condition:
            raise Broken(f"{what} at {self.after} in {self.session}")

    def _on_run_started(self, event: dict[str, Any]) -> None:
        if "cursor" not in event["metadata"]:
            # Brought up to date by a snapshot: what was open is void.
            self.resyncs += 1
            self._joining = True
            self.open.clear()
            self.run = event["runId"]
            return
        self._need(self.run is None, f"run {event['runId']} began inside {self.run}")
        self._need(event["runId"] not in self.ended, f"run {event['runId']} began again")
        self.run = event["runId"]
        for message in event["input"]["messages"]:
            self.messages[message["id"]] = {**message}

    def _finish(self, run: str) -> str:
        self._need(not self.open, f"run {run} ended with {self.open} open")
        if not self._joining:
            self.ended[run] += 1
            self._need(self.ended[run] == 1, f"run {run} ended twice")
        else:
            self.ended[run] = 1
        self._joining = False
        self.run = None
        return run

    def _on_run_finished(self, event: dict[str, Any]) -> str:
        self._need(self.run == event["runId"], f"run {event['runId']} ended inside {self.run}")
        return self._finish(event["runId"])

    def _on_run_error(self, _event: dict[str, Any]) -> str:
        self._need(self.run, "an error outside any run")
        return self._finish(self.run or "")

    def _start(self, entity: str) -> None:
        self._need(self.run, f"{entity} outside any run")
        self._need(entity not in self.open, f"{entity} began twice")
        self.open.add(entity)

    def _end(self, entity: str) -> None:
        self._need(entity in self.open, f"{entity} ended without beginning")
        self.open.discard(entity)

    def _on_text_message_start(self, event: dict[str, Any]) -> None:
        self._start("text " + event["messageId"])
        self.messages[event["messageId"]] = {"role": "assistant", "content": ""}

    def _on_text_message_content(self, event: dict[str, Any]) -> None:
        self._need("text " + event["messageId"] in self.open, "text outside its message")
        self.messages[event["messageId"]]["content"] += event["delta"]

    def _on_text_message_end(self, event: dict[str, Any]) -> None:
        self._end("text " + event["messageId"])

    def _on_reasoning_start(self, event: dict[str, Any]) -> None:
        self._start("span " + event["messageId"])

    def _on_reasoning_message_start(self, event: dict[str, Any]) -> None:
        self._start("reasoning " + event["messageId"])
        self.messages[event["messageId"]] = {"role": "reasoning", "content": ""}

    def _on_reasoning_message_content(self, event: dict[str, Any]) -> None:
        self._need("reasoning " + event["messageId"] in self.open, "reasoning outside its message")
        self.messages[event["messageId"]]["content"] += event["delta"]

    def _on_reasoning_message_end(self, event: dict[str, Any]) -> None:
        self._end("reasoning " + event["messageId"])

    def _on_reasoning_end(self, event: dict[str, Any]) -> None:
        self._end("span " + event["messageId"])

    def _on_tool_call_start(self, event: dict[str, Any]) -> None:
        self._start("call " + event["toolCallId"])
        parent = self.messages.setdefault(event["parentMessageId"], {"role": "assistant"})
        parent.setdefault("toolCalls", []).append({"id": event["toolCallId"], "arguments": ""})

    def _on_tool_call_args(self, event: dict[str, Any]) -> None:
        self._need("call " + event["toolCallId"] in self.open, "arguments outside their call")
        for message in self.messages.values():
            for call in message.get("toolCalls", []):
                if call["id"] == event["toolCallId"]:
                    call["arguments"] += event["delta"]

    def _on_tool_call_end(self, event: dict[str, Any]) -> None:
        self._end("call " + event["toolCallId"])

    def _on_tool_call_result(self, event: dict[str, Any]) -> None:
        self._need("call " + event["toolCallId"] not in self.open, "a result before its call has ended")
        self._need(event["messageId"] not in self.messages, f"result {event['messageId']} came twice")
        self.messages[event["messageId"]] = {
            "role": "tool",
            "toolCallId": event["toolCallId"],
            "content": event["content"],
        }

    def _on_messages_snapshot(self, event: dict[str, Any]) -> None:
        self._need(not self.open, f"a snapshot while {self.open} is open")
        self.messages = {message["id"]: comparable(message) for message in event["messages"]}
        if "cursor" in event["metadata"]:
            self._joining = False


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what the stream tells in another form (its id, a tool's error mark)."""
    kept = {key: value for key, value in message.items() if key not in ("id", "error", "toolCalls")}
    if "toolCalls" in message:
        kept["toolCalls"] = [
            {"id": call["id"], "arguments": json.loads(call["function"]["arguments"])}
            for call in message["toolCalls"]
        ]
    return kept


def _parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of the stream in the form of `comparable`."""
    out = {key: value for key, value in message.items() if key != "id"}
    if "toolCalls" in message:
        out["toolCalls"] = [
            {
                "id": call["id"],
                "arguments": call["arguments"]
                if isinstance(call["arguments"], dict)
                else json.loads(call["arguments"] or "{}"),
            }
            for call in message["toolCalls"]
        ]
    return out


class ChaosClient:
    """A phone: follows its session, sends messages, reconnects anywhere, believes nothing."""

    def __init__(
        self, site: Site, slots: list[Slot], user: str, rng: random.Random, audit: asyncpg.Pool
    ) -> None:
        self._headers = site.headers(user)
        self._slots = slots
        self._rng = rng
        self._audit = audit
        self.session = str(uuid4())
        self.talk = Conversation(self.session)
        self.accepted: list[str] = []
        self.reconnects = 0
        self._changed = asyncio.Event()
        self._http = aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _url(self) -> str | None:
        return self._rng.choice(self._slots).url

    async def _until_done(self, request: Callable[[str], Awaitable[bool]]) -> None:
        """Try on one server after the other until the request went through."""
        while True:
            url = self._url()
            if url is not None:
                with suppress(*_TROUBLE):
                    async with asyncio.timeout(SILENCE):
                        if await request(url):
                            return
            await asyncio.sleep(0.03)

    async def start(self) -> None:
        """Make the session."""

        async def put(url: str) -> bool:
            address = f"{url}/v1/sessions/{self.session}"
            async with self._http.put(address, json={"agent": "coach"}) as response:
                return response.status in (200, 201)

        await self._until_done(put)

    async def talk_until(self, stop: asyncio.Event) -> None:
        """Send messages until told to stop; now and then cancel, or send before the last is answered."""
        while not stop.is_set():
            turn = str(uuid4())
            await self._send(turn, self._text())
            self.accepted.append(turn)
            if self._rng.random() < 0.1:
                await self._cancel(turn)
            if self._rng.random() < 0.75:
                await self.wait_for(turn)

    def _text(self) -> str:
        rng = self._rng
        words = f"tokens={rng.randint(1, 60)} delay_ms={rng.choice([0, 3, 10])}"
        if rng.random() < 0.3:
            words += f" thinking={rng.randint(1, 10)}"
        if rng.random() < 0.4:
            arguments = '{"metric":"steps","start":"2026-11-01","end":"2026-11-02"}'
            words += f" tool=get_daily_metrics args={arguments}"
        return f"[[emulator: {words}]]"

    async def _send(self, turn: str, text: str) -> None:
        async def put(url: str) -> bool:
            address = f"{url}/v1/sessions/{self.session}/turns/{turn}"
            async with self._http.put(address, json={"content": text, "on_busy": "enqueue"}) as response:
                if response.status in (409, 404, 422, 500):
                    raise Broken(f"turn {turn}: {response.status} {await response.text()}")
                return response.status in (200, 202)

        await self._until_done(put)

    async def _cancel(self, turn: str) -> None:
        async def post(url: str) -> bool:
            address = f"{url}/v1/sessions/{self.session}/turns/{turn}/cancel"
            async with self._http.post(address) as response:
                return response.status == 202

        await self._until_done(post)

    async def wait_for(self, turn: str) -> None:
        """Wait until the stream has told the turn's end, or a snapshot has gone past it."""
        resyncs = 0
        while turn not in self.talk.ended:
            self._changed.clear()
            if self.talk.resyncs > resyncs:
                resyncs = self.talk.resyncs
                if await self._ended_meanwhile(turn):
                    return
            await self._changed.wait()

    async def _ended_meanwhile(self, turn: str) -> bool:
        """Ask for a turn's state, as a client does whose cursor fell off the log."""
        states: list[str] = []

        async def get(url: str) -> bool:
            async with self._http.get(f"{url}/v1/sessions/{self.session}/turns/{turn}") as response:
                if response.status == 200:
                    states.append((await response.json())["state"])
                return response.status in (200, 404)

        await self._until_done(get)
        # Unless it is just being told by the events that follow the snapshot.
        ended = bool(states) and states[-1] in ("completed", "failed", "cancelled")
        return ended and self.talk.run != turn

    async def follow(self) -> None:
        """Follow the session for ever, from the cursor, on whatever server there is."""
        while True:
            url = self._url()
            if url is not None:
                with suppress(*_TROUBLE):
                    await self._follow_once(url)
                self.reconnects += 1
            await asyncio.sleep(0.03)

    async def _follow_once(self, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
        address = f"{url}/v1/sessions/{self.session}/events"
        async with self._http.get(address, params={"after": self.talk.after}, timeout=timeout) as response:
            if response.status != 200:
                return
            async with aclosing(_events(response)) as events:
                async for event in events:
                    ended = self.talk.apply(event)
                    if ended is not None:
                        await self._check_settled(ended)
                    self._changed.set()
                    if self._rng.random() < 0.002:
                        return  # a network that drops the connection

    async def state_of(self, turn: str) -> str | None:
        """Return what the database says of a turn."""
        return await self._audit.fetchval(
            "SELECT state FROM myhealth.turns WHERE session_id = $1 AND id = $2", self.session, turn
        )

    async def _check_settled(self, turn: str) -> None:
        state = await self.state_of(turn)
        if state not in ("completed", "failed", "cancelled"):
            raise Broken(f"turn {turn} was told as ended but is {state}")

    async def compare(self) -> None:
        """Compare what the events built with what the server now says the conversation is."""
        told: dict[str, dict[str, Any]] = {}

        async def get(url: str) -> bool:
            after = 0
            told.clear()
            while True:
                address = f"{url}/v1/sessions/{self.session}/messages?after={after}&limit=200"
                async with self._http.get(address) as response:
                    if response.status != 200:
                        return False
                    page = await response.json()
                told.update({message["id"]: comparable(message) for message in page["messages"]})
                if page["next"] is None:
                    return True
                after = page["next"]

        await self._until_done(get)
        believed = {key: _parsed_arguments(value) for key, value in self.talk.messages.items()}
        for key in told.keys() | believed.keys():
            if told.get(key) != believed.get(key):
                raise Broken(f"{self.session} {key}: told {believed.get(key)}, is {told.get(key)}")
        if list(told) != list(believed):
            raise Broken(f"{self.session}: order of messages differs")


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a stream; bytes after the last blank line are not an event."""
    buffer = b""
    async for chunk in response.content.iter_any():
        buffer += chunk
        *frames, buffer = buffer.split(b"\n\n")
        for frame in frames:
            data = b"".join(line[6:] for line in frame.split(b"\n") if line.startswith(b"data: "))
            if data:
                yield json.loads(data)


# --- faults ------------------------------------------------------------------------------------------


class Injector:
    """Does harm to one machine, by the seed."""

    def __init__(self, slot: Slot, rng: random.Random, database_url: str) -> None:
        self._slot = slot
        self._rng = rng
        self._database_url = database_url
        self.done: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Do so many faults, one after the other."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze_short": self._freeze_short,
            "freeze_long": self._freeze_long,
            "kill_in_transaction": self._kill_in_transaction,
            "freeze_in_transaction": self._freeze_in_transaction,
        }
        weights = [4, 4, 2, 2, 2]
        for _ in range(count):
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))
            name = self._rng.choices(list(faults), weights)[0]
            await faults[name]()
            self.done[name] += 1

    async def _kill(self) -> None:
        self._slot.kill()
        await self._slot.start()

    async def _freeze(self, seconds: float) -> None:
        assert self._slot.backend is not None
        self._slot.backend.freeze()
        await asyncio.sleep(seconds)
        self._slot.backend.thaw()

    async def _freeze_short(self) -> None:
        await self._freeze(self._rng.uniform(0.05, 0.7 * LEASE))

    async def _freeze_long(self) -> None:
        await self._freeze(self._rng.uniform(1.5 * LEASE, 2.5 * LEASE))

    async def _kill_in_transaction(self) -> None:
        """Kill while a statement of the server waits inside Postgres, which then goes on and commits it."""

        async def harm() -> None:
            self._slot.kill()

        await self._while_writing(harm)
        await self._slot.start()

    async def _freeze_in_transaction(self) -> None:
        """Freeze while a statement waits; it commits, and nobody reads the answer for longer than a lease."""

        async def harm() -> None:
            assert self._slot.backend is not None
            self._slot.backend.freeze()

        await self._while_writing(harm)
        await asyncio.sleep(self._rng.uniform(0.2 * LEASE, 2.2 * LEASE))
        assert self._slot.backend is not None
        self._slot.backend.thaw()

    async def _while_writing(self, harm: Callable[[], Awaitable[None]]) -> None:
        """Hold up a session this machine owns until one of its statements waits, do harm, let go."""
        connection = await asyncpg.connect(self._database_url)
        try:
            async with connection.transaction():
                await connection.fetch(
                    "SELECT FROM myhealth.sessions s JOIN myhealth.machines m ON m.incarnation = s.owner "
                    "WHERE m.id = $1 ORDER BY s.id LIMIT 1 FOR UPDATE OF s",
                    self._slot.name,
                )
                for _ in range(60):
                    if await connection.fetchval(
                        "SELECT count(*) FROM pg_stat_activity "
                        "WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
                    ):
                        break
                    await asyncio.sleep(0.005)
                await harm()
                await asyncio.sleep(0.02)
        finally:
            await connection.close()


# --- the audit ---------------------------------------------------------------------------------------

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
