"""What readers lose whose connection breaks in mid-stream again and again.

Ours comes back with its cursor; in the end what a reader got is held against the log (`wait=0`). An event
counts as lost when the log has it and the reader neither got it nor a snapshot that stands for it, as doubled
when it came again; the same is counted of the texts that both build from their events, and the larger counts.

The floor keeps nothing that could be asked for again: what its model said after the break is lost.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import uuid4

import aiohttp
import msgspec

from bench.cloud import Cloud
from bench.targets import Ours, Shape

Fault: TypeAlias = Literal["cut", "kill", "stop"]
FAULTS: tuple[Fault, ...] = ("cut", "kill", "stop")

TALK = Shape(deltas=250, delay_ms=20, ttft_ms=0)
_BETWEEN = 10
"""Deltas every reader gets after it came back, before the next fault."""
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 60
_TROUBLE = (aiohttp.ClientError, OSError)
_STAMP = re.compile(r"@\d{19} ")
_ENDS = ("RUN_FINISHED", "RUN_ERROR")


class Loss(NamedTuple):
    """Of all readers together."""

    breaks: int
    events: int
    lost: int
    doubled: int


class Frame(NamedTuple):
    """An event and its place; None: it has none of its own (part of a snapshot)."""

    place: tuple[int, int] | None
    event: dict[str, Any]


async def _frames(response: aiohttp.ClientResponse) -> AsyncGenerator[Frame]:
    """Yield whole events; what stands after the last blank line is not one."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for frame in whole:
            lines = dict(line.split(b": ", 1) for line in frame.split(b"\n") if b": " in line)
            if b"data" in lines:
                epoch, _, n = lines.get(b"id", b"").partition(b"-")
                place = (int(epoch), int(n)) if n else None
                yield Frame(place, msgspec.json.decode(lines[b"data"]))


class View:
    """What events build: which ones came, and the assistant's texts."""

    def __init__(self) -> None:
        self.places: Counter[tuple[int, int]] = Counter()
        self.covered = (0, 0)
        """A snapshot stands for everything up to here."""
        self.deltas = 0
        self.ended = False
        self._texts: dict[str, str] = {}
        self._joining = False

    def apply(self, frame: Frame) -> None:
        """Take an event."""
        event, kind = frame.event, frame.event["type"]
        if frame.place is None:
            self._joining = True
        else:
            self.places[frame.place] += 1
            if self._joining:
                self.covered, self._joining = frame.place, False
        if kind == "MESSAGES_SNAPSHOT":
            self._texts = {each["id"]: str(each.get("content")) for each in event["messages"]}
        elif kind == "TEXT_MESSAGE_CONTENT":
            self.deltas += 1
            self._texts[event["messageId"]] = self._texts.get(event["messageId"], "") + event["delta"]
        self.ended = self.ended or kind in _ENDS

    def stamps(self) -> Counter[str]:
        """Return the model's deltas in the texts as they are now."""
        return Counter(stamp for text in self._texts.values() for stamp in _STAMP.findall(text))


class Reader:
    """Follows one turn to its end. `fresh`: deltas since it came back; None: it has to come back first."""

    def __init__(self, http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> None:
        self.view = View()
        self.fresh: int | None = None
        self.breaks = 0
        self._http = http
        self._url = url
        self._headers = {**headers, "accept": "text/event-stream"}
        self._response: aiohttp.ClientResponse | None = None

    def cut(self) -> None:
        """Break the connection off."""
        if self._response is not None:
            self._response.close()

    async def read(self, *, resumes: bool) -> None:
        """Read until the turn has ended, or (not `resumes`) until the connection has."""
        while not self.view.ended:
            with suppress(*_TROUBLE):
                await self._read()
            if self.view.ended:
                return
            if not resumes:
                self.breaks += 1
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _read(self) -> None:
        cursor = max(self.view.places, default=None)
        back = {} if cursor is None else {"last-event-id": f"{cursor[0]}-{cursor[1]}"}
        body = {"content": TALK.text()}
        async with self._http.put(self._url, json=body, headers={**self._headers, **back}) as response:
            if response.status not in (200, 502, 503):
                raise RuntimeError(f"{response.status} {await response.text()}")
            if response.status != 200:
                return
            self._response = response
            self.fresh = 0
            self.breaks += cursor is not None
            try:
                async for frame in _frames(response):
                    self.view.apply(frame)
                    if self.fresh is not None:
                        self.fresh += frame.event["type"] == "TEXT_MESSAGE_CONTENT"
            finally:
                self._response = None


async def _harm(cloud: Cloud, readers: list[Reader], faults: Sequence[Fault]) -> None:
    """Do one thing after the other to all readers, each in mid-stream of all of them."""
    for fault in faults:
        while any((reader.fresh or 0) < _BETWEEN for reader in readers):
            if any(reader.view.ended for reader in readers):
                return
            await asyncio.sleep(_LOOK_SECONDS)
        for reader in readers:
            reader.fresh = None
        match fault:
            case "cut":
                for reader in readers:
                    reader.cut()
            case "kill":
                cloud.kill()
            case "stop":
                await asyncio.to_thread(cloud.ask, "stopped")


async def _together(cloud: Cloud, readers: list[Reader], faults: Sequence[Fault], *, resumes: bool) -> None:
    harming = asyncio.create_task(_harm(cloud, readers, faults))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await asyncio.gather(*(reader.read(resumes=resumes) for reader in readers))
    finally:
        harming.cancel()
        await asyncio.gather(harming, return_exceptions=True)


async def ours(target: Ours, cloud: Cloud, readers: int, turns: int) -> Loss:
    """Break every turn's connections six times, and compare with the log."""
    total = Loss(0, 0, 0, 0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        for _ in range(turns):
            sessions = [f"{cloud.url}/v1/sessions/{uuid4()}" for _ in range(readers)]
            for session in sessions:
                async with http.put(session, json={"agent": "coach"}, headers=target.headers) as response:
                    response.raise_for_status()
            urls = [f"{session}/turns/{uuid4()}" for session in sessions]
            following = [Reader(http, url, target.headers) for url in urls]
            # Twice each: a turn whose owner goes down more than five times is given up.
            await _together(cloud, following, FAULTS * 2, resumes=True)
            for session, reader in zip(sessions, following, strict=True):
                log = await _log(http, session, target.headers)
                total = _sum(total, _compare(log, reader))
    return total


async def _log(http: aiohttp.ClientSession, session: str, headers: dict[str, str]) -> View:
    view = View()
    async with http.get(f"{session}/events", params={"wait": "0"}, headers=headers) as response:
        response.raise_for_status()
        async for frame in _frames(response):
            view.apply(frame)
    return view


def _compare(log: View, reader: Reader) -> Loss:
    """Hold what a reader got against the log: event by event, and the texts they come to."""
    view = reader.view
    lost = sum(place > view.covered for place in log.places.keys() - view.places.keys())
    doubled = view.places.total() - len(view.places)
    settled, held = log.stamps(), view.stamps()
    return Loss(
        reader.breaks,
        view.places.total(),
        max(lost, (settled - held).total()),
        max(doubled, (held - settled).total()),
    )


async def floor(cloud: Cloud, readers: int, turns: int) -> Loss:
    """Break every turn's connections once: there is no coming back."""
    total = Loss(0, 0, 0, 0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        for number in range(turns):
            urls = [f"{cloud.url}/turns/{uuid4()}" for _ in range(readers)]
            following = [Reader(http, url, {}) for url in urls]
            fault = FAULTS[number % len(FAULTS)]
            await _together(cloud, following, [fault], resumes=False)
            for reader in following:
                came = reader.view.stamps().total()
                total = _sum(total, Loss(reader.breaks, came, TALK.deltas - came, 0))
    return total


def _sum(one: Loss, other: Loss) -> Loss:
    return Loss(*(a + b for a, b in zip(one, other, strict=True)))
