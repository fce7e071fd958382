"""The golden streams: what a client sees of typical turns, recorded from real processes.

Clients in any language are tested against `protocol/golden/*.jsonl`: one event a line, as it stands in a
frame. What differs from run to run is replaced: ids and epochs by the order they come in, times and sizes of
prompts by 0. Pieces of one text that follow one another are joined, because how a text is cut depends on the
load, and cursors are numbered anew. `python -m acceptance.golden` records them again.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp

from .client import Client, Received, ended, ends, say, seen, take
from .stack import Site, emulator, postgres

FOLDER = Path(__file__).resolve().parent.parent / "protocol" / "golden"
STEPS = {"metric": "steps", "start": "2026-11-01", "end": "2026-11-02"}
_THREAD = str(UUID(int=0x0192D3A4_0000_7000_8000_000000000000))
_DELTAS = ("TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS")

Play = Callable[[Client, str], Awaitable[list[Received]]]


def turn_id(n: int) -> str:
    """Return the n-th turn's id in a recording."""
    return str(UUID(int=UUID(_THREAD).int + n))


# --- the plays ---------------------------------------------------------------------------------------


async def answer(client: Client, session: str) -> list[Received]:
    """Say one sentence."""
    return await take(client.answer(session, say("Hi", thinking=0, tokens=3), turn=turn_id(1)))


async def tool_call(client: Client, session: str) -> list[Received]:
    """Think, look something up, think, answer."""
    content = say("How many steps?", thinking=2, tool="get_daily_metrics", args=STEPS, tokens=3)
    return await take(client.answer(session, content, turn=turn_id(1)))


async def cancelled(client: Client, session: str) -> list[Received]:
    """Stop in mid-text: what is visible stays."""
    return await _stop(client, session, "TEXT_MESSAGE_CONTENT", say("Hi", thinking=0, **_HANGING))


async def cancelled_thought(client: Client, session: str) -> list[Received]:
    """Stop in mid-thought: the thought goes."""
    return await _stop(client, session, "REASONING_MESSAGE_CONTENT", say("Hi", thinking=9, **_HANGING))


_HANGING: dict[str, Any] = {"tokens": 9, "fault": "stall;after=1"}


async def _stop(client: Client, session: str, at: str, content: str) -> list[Received]:
    await client.begin(session, content, turn=turn_id(1))
    await take(client.sse(session), seen(at))
    await client.cancel(session, turn_id(1))
    return await take(client.sse(session), ended)


async def failed(client: Client, session: str) -> list[Received]:
    """Fail in mid-text."""
    content = say("Hi", thinking=0, tokens=4, fault="overloaded;after=2")
    return await take(client.answer(session, content, turn=turn_id(1)))


async def queue(client: Client, session: str) -> list[Received]:
    """Answer two messages in turn."""
    # The second comes while the model is still silent about the first: later it would begin an epoch.
    for n, silent in ((1, 1500), (2, 0)):
        content = say(f"Message {n}", thinking=0, tokens=2, ttft_ms=silent)
        await client.begin(session, content, turn=turn_id(n))
    return await take(client.sse(session), ends(2))


async def resynced(client: Client, session: str) -> list[Received]:
    """Come back with a cursor that fell off the log."""
    await take(client.answer(session, say("Hi", thinking=0, tokens=2), turn=turn_id(1)))
    return await take(client.sse(session, "7-7"), ended)


async def parked(client: Client, session: str) -> list[Received]:
    """Ask the device, wait for it, go on."""
    content = say("My pulse?", thinking=0, tool="read_heart", args={}, tokens=3)
    stream = asyncio.create_task(take(client.answer(session, content, turn=turn_id(1))))
    [pending] = (await take(client.sse(session), seen("CUSTOM")))[-1:]
    call = pending.event["value"]["toolCallId"]
    path = f"/v1/sessions/{session}/tool-calls/{call}/result"
    status, body = await client.call("PUT", path, json={"status": "ok", "content": '{"bpm":62}'})
    assert status == 200, body
    return await stream


_HEART = {
    "name": "read_heart",
    "description": "Reads the heart rate on the phone.",
    "input_schema": {"type": "object", "properties": {}},
}

PLAYS: dict[str, Play] = {
    play.__name__: play
    for play in (answer, tool_call, cancelled, cancelled_thought, failed, queue, resynced, parked)
}


async def takeover(owner: Client, other: Client, session: str, kill: Callable[[], None]) -> list[Received]:
    """Lose the owner in mid-text, after a tool call."""
    content = say(
        "How many steps?",
        thinking=0,
        tool="get_daily_metrics",
        args=STEPS,
        tokens=4,
        fault="stall;after=2",
        fault_step=2,
        fault_times=1,
    )
    await owner.begin(session, content, turn=turn_id(1))

    def hangs(events: list[Received]) -> bool:
        said = "".join(each.event["delta"] for each in events if each.type == "TEXT_MESSAGE_CONTENT")
        return len(said.split()) == 2

    await take(other.sse(session), hangs)
    kill()
    return await take(other.sse(session), ended)


# --- recording ---------------------------------------------------------------------------------------


async def record(site: Site) -> dict[str, str]:
    """Play everything on servers of its own; return the files' contents by name."""
    files: dict[str, str] = {}
    async with aiohttp.ClientSession(headers=site.headers("golden")) as http:
        with site.server(LEASE_SECONDS="2") as a, site.server(LEASE_SECONDS="2") as b:
            owner, other = Client(http, a.url), Client(http, b.url)
            for name, play in PLAYS.items():
                session = await owner.new_session(device_tools=[_HEART] if play is parked else [])
                files[name] = normalised(await play(owner, session), session)
            session = await owner.new_session()
            files["takeover"] = normalised(await takeover(owner, other, session, a.kill), session)
    return files


def normalised(events: list[Received], session: str) -> str:
    """Return a stream as the lines of a golden file."""
    lines: list[str] = []
    epochs: dict[str, int] = {}
    numbers: dict[str, int] = {}
    calls: dict[str, str] = {}

    def epoch(match: re.Match[str]) -> str:
        return str(epochs.setdefault(match[0], len(epochs) + 1))

    def call(match: re.Match[str]) -> str:
        return calls.setdefault(match[0], f"toolu_{len(calls) + 1}")

    for event in _joined(events):
        cursor = event["metadata"].get("cursor")
        if cursor is not None:
            first = cursor.partition("-")[0]
            numbers[first] = numbers.get(first, 0) + 1
            event["metadata"]["cursor"] = f"{first}-{numbers[first]}"
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":")).replace(session, _THREAD)
        text = re.sub(r'("(?:timestamp|inputTokens)":)\d+', r"\g<1>0", text)
        text = re.sub(r'("expiresAt":)"[^"]+"', r'\g<1>"2026-11-20T12:02:00Z"', text)
        text = re.sub(r"(?<=[\"m])\d{13}(?=-\d)", epoch, text)
        lines.append(re.sub(r"toolu_\w+", call, text))
    return "\n".join(lines) + "\n"


def _joined(events: list[Received]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for event in (each.event for each in events):
        last = out[-1] if out else None
        if last is not None and event["type"] in _DELTAS and _same(last, event):
            last["delta"] += event["delta"]
            last["metadata"] = event["metadata"]
        else:
            out.append(event)
    return out


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a.get(key) == b.get(key) for key in ("type", "messageId", "toolCallId"))


def main() -> None:
    """Record everything and write the files."""
    with tempfile.TemporaryDirectory() as keys, postgres() as url, emulator() as model:
        site = Site(url, model, Path(keys))
        site.command("migrate")
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, content in asyncio.run(record(site)).items():
            (FOLDER / f"{name}.jsonl").write_text(content, encoding="utf-8")
            print(f"wrote {name}.jsonl")


if __name__ == "__main__":
    main()
