"""A client that believes nothing: it follows, sends, cuts, comes back, and checks every event it sees.

It knows nothing of the server's insides. In the end `compare` holds what it was told against what the server
says; every end it is told of it looks up in the database.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg

from .client import consent
from .conversation import Broken, Conversation, believed, comparable
from .stack import Site

SILENCE = 4.0
"""Seconds without a byte after which a client tries elsewhere: its server may be frozen."""
_HEART = {
    "name": "read_heart",
    "description": "Reads the heart rate on the phone.",
    "input_schema": {"type": "object", "properties": {}},
}
_TROUBLE = (aiohttp.ClientError, OSError, TimeoutError)
# The last is what asyncpg says of a connection that breaks while it is given back.
_DATABASE_TROUBLE = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)


class Phone:
    """A phone: follows its session, sends messages, reconnects anywhere, believes nothing."""

    def __init__(
        self,
        site: Site,
        where: Callable[[], str | None],
        user: str,
        rng: random.Random,
        audit: asyncpg.Pool,
        *,
        pauses: tuple[float, float] | None = None,
        thinks: float = 0.0,
    ) -> None:
        """Make a phone; `pauses`: now and then it is put away for so many seconds (least, most).

        `thinks`: seconds between an answer and the next message, at the most.
        """
        self._headers = site.headers(user)
        self._where = where
        self._rng = rng
        self._audit = audit
        self.session = str(uuid4())
        self.talk = Conversation(self.session)
        self.accepted: list[str] = []
        self.reconnects = 0
        self.answered: dict[str, str] = {}
        """What the server has confirmed as the answer to a call."""
        self._answering: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._pauses = pauses
        self._thinks = thinks
        self._present = asyncio.Event()
        self._present.set()
        self._reading: asyncio.Task[None] | None = None
        self._http = aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )

    async def close(self) -> None:
        """Close the connections."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._http.close()

    def _url(self) -> str | None:
        return self._where()

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
        """Agree to everything and make the session."""
        body = {"agent": "coach", "device_tools": [_HEART]}

        async def put(url: str) -> bool:
            await consent(self._http, url)
            address = f"{url}/v1/sessions/{self.session}"
            async with self._http.put(address, json=body) as response:
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
            if self._pauses is not None and self._rng.random() < 0.4:
                await self._leave(self._rng.uniform(*self._pauses))
            if self._rng.random() < 0.75:
                await self.wait_for(turn)
            if self._thinks:
                await asyncio.sleep(self._rng.uniform(0, self._thinks))

    async def _leave(self, seconds: float) -> None:
        """Be put away, as a phone whose app is in the background: its streams are gone, the turn goes on."""
        self._present.clear()
        if self._reading is not None:
            self._reading.cancel()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._present.set()

    def _text(self) -> str:
        rng = self._rng
        words = f"tokens={rng.randint(1, 60)} delay_ms={rng.choice([0, 3, 10])}"
        if rng.random() < 0.3:
            words += f" thinking={rng.randint(1, 10)}"
        if rng.random() < 0.12:
            words += " tool=read_heart args={}"
        elif rng.random() < 0.5:
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

    async def _answer(self, call: str) -> None:
        """Answer a call, perhaps slowly; the same again until a server confirms or refuses it."""
        content = f"{self._rng.randint(40, 180)} at {uuid4().hex[:6]}"
        await asyncio.sleep(self._rng.choice([0, 0, 0.05, 0.2, 1.0]))

        async def put(url: str) -> bool:
            address = f"{url}/v1/sessions/{self.session}/tool-calls/{call}/result"
            async with self._http.put(address, json={"status": "ok", "content": content}) as response:
                if response.status in (404, 422, 500):
                    raise Broken(f"call {call}: {response.status} {await response.text()}")
                if response.status == 200:
                    self.answered[call] = content
                return response.status in (200, 409)  # expired, or a new message or a cancel was first

        await self._until_done(put)

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
        """Follow the session from the cursor whenever the phone is in hand, on whatever server there is."""
        while True:
            await self._present.wait()
            url = self._url()
            if url is not None:
                await self._follow_while_present(url)
                self.reconnects += 1
            await asyncio.sleep(0.03)

    async def _follow_while_present(self, url: str) -> None:
        reading = self._reading = asyncio.create_task(self._follow_once(url))
        try:
            await asyncio.wait([reading])
        finally:
            reading.cancel()
        with suppress(*_TROUBLE):
            if not reading.cancelled():
                reading.result()

    async def _follow_once(self, url: str) -> None:
        self.talk.connection += 1
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
        address = f"{url}/v1/sessions/{self.session}/events"
        async with self._http.get(address, params={"after": self.talk.after}, timeout=timeout) as response:
            if response.status != 200:
                return
            async with aclosing(_events(response)) as events:
                async for event in events:
                    ended = self.talk.apply(event)
                    if event.get("name") == "tool_call_pending" and self._rng.random() < 0.9:
                        call = event["value"]["toolCallId"]
                        self._answering.append(asyncio.create_task(self._answer(call)))
                    if ended is not None:
                        await self._check_settled(ended)
                    self._changed.set()
                    if self._rng.random() < 0.002:
                        return  # a network that drops the connection

    async def state_of(self, turn: str) -> str | None:
        """Return what the database says of a turn, once it can be asked."""
        query = "SELECT state FROM myhealth.turns WHERE session_id = $1 AND id = $2"
        while True:
            # The last is what asyncpg says of a connection that breaks while it is given back.
            with suppress(
                asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError
            ):
                return await self._audit.fetchval(query, self.session, turn)
            await asyncio.sleep(0.05)

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
        await asyncio.gather(*self._answering)
        results = {m["toolCallId"]: m["content"] for m in told.values() if m["role"] == "tool"}
        for call, content in self.answered.items():
            if results.get(call) != content:
                raise Broken(f"{self.session} {call}: confirmed {content}, is {results.get(call)}")
        held = {key: believed(value) for key, value in self.talk.messages.items()}
        for key in told.keys() | held.keys():
            if told.get(key) != held.get(key):
                raise Broken(f"{self.session} {key}: told {held.get(key)}, is {told.get(key)}")
        if list(told) != list(held):
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
