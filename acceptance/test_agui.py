"""The unmodified npm client `@ag-ui/client` as a judge: whole runs, and its verifier over our streams."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from . import node
from .client import say, seen, take
from .conftest import AsUser, Pair
from .stack import Backend, Site
from .test_cuts import RICH
from .verifier import verify


@pytest.fixture(autouse=True)
def _client() -> None:
    node.require()


def request(site: Site, backend: Backend, content: str, thread: str, run: str) -> dict[str, Any]:
    return {
        "do": "run",
        "url": f"{backend.url}/v1/agui/coach",
        "headers": site.headers(),
        "threadId": thread,
        "runId": run,
        "content": content,
    }


async def test_http_agent_completes_turns_with_a_tool_call(site: Site, pair: Pair, as_user: AsUser) -> None:
    thread = str(uuid4())
    report: dict[str, Any] = {}
    for _ in range(2):
        async with node.script(request(site, pair.a, RICH, thread, str(uuid4()))) as running:
            report = await running.report()
        assert report["error"] is None
        assert report["events"][0] == "RUN_STARTED"
        assert report["events"][-1] == "RUN_FINISHED"
        assert report["events"].count("TOOL_CALL_RESULT") == 1
    stored = await as_user(pair.b).messages(thread)
    assert [message["role"] for message in stored] == 2 * [
        *("user", "reasoning", "assistant", "tool", "reasoning", "assistant")
    ]
    # The agent began its second run with the user's message alone, and sees the run's messages after it.
    half = len(stored) // 2
    assert [(m["id"], m["role"], m.get("content")) for m in report["messages"]] == [
        (m["id"], m["role"], m.get("content")) for m in stored[half:]
    ]


async def test_http_agent_is_told_of_a_failed_run(site: Site, pair: Pair) -> None:
    content = say(fault="overloaded;after=3", tokens=8)
    async with node.script(request(site, pair.a, content, str(uuid4()), str(uuid4()))) as running:
        report = await running.report()
    assert report["events"][-1] == "RUN_ERROR"
    assert report["error"] == "The model could not answer right now. Please try again in a moment."


async def test_http_agent_completes_a_turn_whose_owner_is_killed(site: Site, as_user: AsUser) -> None:
    thread, run = str(uuid4()), str(uuid4())
    # The first answer hangs in mid-text, however long the second agent takes to join; the next does not.
    hangs = f' id="{uuid4().hex}" fault="stall;after=9" fault_step=2 fault_times=1]]'
    content = RICH.replace("]]", hangs)
    with site.server() as a, site.server() as b:
        await as_user(a).consent()
        async with node.script(request(site, a, content, thread, run)) as first:
            await first.event("RUN_STARTED")
            async with node.script(request(site, b, content, thread, run)) as second:
                await first.event("TEXT_MESSAGE_CONTENT")
                await second.event("TEXT_MESSAGE_CONTENT")
                a.kill()
                report = await second.report()
        assert report["error"] is None
        assert report["events"][-1] == "RUN_FINISHED"
        assert report["events"].count("TOOL_CALL_RESULT") == 1
        assert "MESSAGES_SNAPSHOT" in report["events"]
        stored = await as_user(b).messages(thread)
        assert [m["role"] for m in stored] == [
            *("user", "reasoning", "assistant", "tool", "reasoning", "assistant")
        ]
        assert report["messages"][-1]["content"] == stored[-1]["content"]
        assert [m["id"] for m in report["messages"]] == [m["id"] for m in stored]


async def test_the_npm_verifier_accepts_streams_and_ends_up_with_the_stored_conversation(
    pair: Pair, as_user: AsUser
) -> None:
    client = as_user(pair.a)
    session = await client.new_session()
    for content in (RICH, say(tokens=3), say(fault="truncated;after=4", tokens=9), say(tokens=2)):
        await take(client.answer(session, content))
    turn = await client.begin(session, say(thinking=3, tokens=500, delay_ms=10))
    await take(client.sse(session, turn["cursor"]), seen("TEXT_MESSAGE_CONTENT", 3))
    await client.cancel(session, turn["id"])
    log = await client.finished(session, turn["id"])
    verify(log)
    [held] = await node.verified([log])
    assert held == await client.messages(session)
