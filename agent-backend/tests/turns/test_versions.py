"""What is frozen with a session: tools that wait for somebody stand apart from those that run at once."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec

from agent_backend.agents import Agent, Budget
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database
from agent_backend.turns.versions import AgentVersions, DeviceTool, freeze

from .test_laws import Probe

SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS = {"probe": Probe(), "other": Probe("other")}


def agent(*approvals: str) -> Agent:
    return Agent(
        name="coach",
        description="for tests",
        engine="messages",
        model="claude-sonnet-5-5",
        max_tokens=1000,
        thinking="off",
        tools=("probe", "other"),
        budget=Budget(max_steps=3, usd_micros_per_turn=1000),
        on_busy="enqueue",
        system="You are a test.",
        content_hash="0",
        device_tools=True,
        approvals=approvals,
    )


def test_an_agent_without_either_is_frozen_as_ever() -> None:
    """Else every session's version would change with the release, and with it the provider's cache."""
    frozen = freeze(agent(), TOOLS)
    assert set(msgspec.json.decode(msgspec.json.encode(frozen))) == {
        *("name", "engine", "model", "max_tokens", "thinking", "max_steps", "usd_micros_per_turn"),
        *("on_busy", "system", "tools"),
    }
    assert not frozen.waits
    assert frozen.offered() is frozen.tools


def test_a_release_that_knows_no_approvals_offers_no_tool_that_needs_one() -> None:
    frozen = freeze(agent("other"), TOOLS)
    told = msgspec.json.decode(msgspec.json.encode(frozen))
    assert [tool["name"] for tool in told["tools"]] == ["probe"]
    assert [tool.name for tool in frozen.offered()] == ["probe", "other"]
    assert frozen.waits


async def test_versions_with_a_clients_tools_are_found_again_and_not_kept_for_ever(
    database: Database,
) -> None:
    versions = AgentVersions(database, {"coach": agent()}, TOOLS)
    await versions.register()
    made: list[bytes] = []
    for n in range(260):
        tool = DeviceTool(name=f"read_{n}", description="Reads.", input_schema=SCHEMA)
        version = versions.with_device_tools("coach", [tool])
        assert version is not None
        put = await store.put(
            database,
            uuid4(),
            uuid4(),
            agent="coach",
            version=version[0],
            title=None,
            body_hash=b"h",
            frozen=version[1],
        )
        assert put is not None
        made.append(version[0])
    assert len(set(made)) == 260
    for n, version in enumerate(made):
        frozen = await versions.get(version)
        assert [tool.name for tool in frozen.offered()] == ["probe", "other", f"read_{n}"]
    assert len(versions._others) == 256
    versions.forget()
    assert (await versions.get(made[-1])).device_tools[0].name == "read_259"
    assert versions.with_device_tools("coach", []) == (versions.current("coach"), None)
    assert versions.with_device_tools("nobody", []) is None
