"""Agent versions: prompt and tools as they were when a session began.

Editing a prompt or a tool in mid-conversation would empty the provider's prompt cache and invalidate signed
thinking, so a session keeps the version it began with, addressed by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from agent_backend.agents import Agent
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database
from agent_backend.engines.base import ToolSchema
from agent_backend.errors import Unavailable
from agent_backend.sessions import OnBusy
from agent_backend.tools.base import Tool


class FrozenAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of an agent that a model call depends on."""

    name: str
    engine: str
    model: str
    max_tokens: int
    thinking: Literal["off", "on"]
    max_steps: int
    usd_micros_per_turn: int
    on_busy: OnBusy
    system: str
    tools: list[ToolSchema]


_decoder = msgspec.json.Decoder(FrozenAgent)


def freeze(agent: Agent, tools: Mapping[str, Tool]) -> FrozenAgent:
    """Put an agent file and its tools' schemas together."""
    return FrozenAgent(
        name=agent.name,
        engine=agent.engine,
        model=agent.model,
        max_tokens=agent.max_tokens,
        thinking=agent.thinking,
        max_steps=agent.budget.max_steps,
        usd_micros_per_turn=agent.budget.usd_micros_per_turn,
        on_busy=agent.on_busy,
        system=agent.system,
        tools=[
            ToolSchema(name=tool.name, description=tool.description, input_schema=tool.input_schema)
            for tool in (tools[name] for name in agent.tools)
        ],
    )


class AgentVersions:
    """The versions this process knows; older ones come from the database."""

    def __init__(self, database: Database, agents: Mapping[str, Agent], tools: Mapping[str, Tool]) -> None:
        self._database = database
        self._by_hash: dict[bytes, FrozenAgent] = {}
        self._current: dict[str, tuple[bytes, str]] = {}
        for agent in agents.values():
            frozen = freeze(agent, tools)
            text = msgspec.json.encode(frozen)
            version = hashlib.sha256(text).digest()
            self._by_hash[version] = frozen
            self._current[agent.name] = (version, text.decode())

    async def register(self) -> None:
        """Write the current versions to the database, so that sessions can refer to them."""
        for name, (version, text) in self._current.items():
            await store.put_agent_version(self._database, version, name, text)

    def current(self, name: str) -> bytes | None:
        """Return the hash of the agent's current version; None for an unknown agent."""
        entry = self._current.get(name)
        return None if entry is None else entry[0]

    async def get(self, version: bytes) -> FrozenAgent:
        """Return a version. Raises Unavailable if neither memory nor database has it."""
        frozen = self._by_hash.get(version)
        if frozen is None:
            text = await store.read_agent_version(self._database, version)
            if text is None:
                raise Unavailable("This session's agent version is gone.")
            frozen = self._by_hash[version] = _decoder.decode(text)
        return frozen
