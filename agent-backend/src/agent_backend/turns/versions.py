"""Agent versions: prompt and tools as they were when a session began.

Editing a prompt or a tool in mid-conversation would empty the provider's prompt cache and invalidate signed
thinking, so a session keeps the version it began with, addressed by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from agent_backend.agents import Agent
from agent_backend.db import sessions as store
from agent_backend.db.pool import Database
from agent_backend.engines.base import ToolSchema
from agent_backend.errors import Unavailable
from agent_backend.sessions import OnBusy
from agent_backend.tools.base import Tool


class DeviceTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that a client runs. `effects`: it changes something, so one device is to run it once."""

    name: str
    description: str
    input_schema: dict[str, Any]
    effects: bool = False

    def schema(self) -> ToolSchema:
        """Return it as the model sees it."""
        return ToolSchema(name=self.name, description=self.description, input_schema=self.input_schema)


class FrozenAgent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
    # Beside `tools`, not in it: a release that does not know them must run none of them.
    approval_tools: list[ToolSchema] = []
    """Server tools that run only after the user's yes."""
    device_tools: list[DeviceTool] = []
    """What the client of this session runs."""

    @property
    def waits(self) -> bool:
        """A turn of this agent may have to wait for somebody outside."""
        return bool(self.approval_tools or self.device_tools)

    def offered(self) -> list[ToolSchema]:
        """Return what the model may call."""
        if not self.approval_tools and not self.device_tools:
            return self.tools
        return [*self.tools, *self.approval_tools, *(tool.schema() for tool in self.device_tools)]


_REMEMBERED = 256
"""Versions kept in memory beside the current ones."""
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
        tools=[_schema(tools[name]) for name in agent.tools if name not in agent.approvals],
        approval_tools=[_schema(tools[name]) for name in agent.tools if name in agent.approvals],
    )


def _schema(tool: Tool) -> ToolSchema:
    return ToolSchema(name=tool.name, description=tool.description, input_schema=tool.input_schema)


class AgentVersions:
    """The versions this process knows; older ones come from the database."""

    def __init__(self, database: Database, agents: Mapping[str, Agent], tools: Mapping[str, Tool]) -> None:
        self._database = database
        self._by_hash: dict[bytes, FrozenAgent] = {}
        self._others: dict[bytes, FrozenAgent] = {}
        self._current: dict[str, tuple[bytes, str]] = {}
        for agent in agents.values():
            frozen = freeze(agent, tools)
            version, text = _addressed(frozen)
            self._by_hash[version] = frozen
            self._current[agent.name] = (version, text)

    async def register(self) -> None:
        """Write the current versions to the database, so that sessions can refer to them."""
        for name, (version, text) in self._current.items():
            await store.put_agent_version(self._database, version, name, text)

    def current(self, name: str) -> bytes | None:
        """Return the hash of the agent's current version; None for an unknown agent."""
        entry = self._current.get(name)
        return None if entry is None else entry[0]

    def with_device_tools(self, name: str, device_tools: list[DeviceTool]) -> tuple[bytes, str | None] | None:
        """Return the agent's current version with a client's tools: its hash and, with tools, its JSON text.

        The text is to be written with the session that needs it. None for an unknown agent.
        """
        current = self.current(name)
        if current is None or not device_tools:
            return None if current is None else (current, None)
        return _addressed(msgspec.structs.replace(self._by_hash[current], device_tools=device_tools))

    def forget(self) -> None:
        """Drop the versions that clients made; those still needed are read again."""
        self._others.clear()

    async def get(self, version: bytes) -> FrozenAgent:
        """Return a version. Raises Unavailable if neither memory nor database has it."""
        frozen = self._by_hash.get(version) or self._others.pop(version, None)
        if frozen is None:
            text = await store.read_agent_version(self._database, version)
            if text is None:
                raise Unavailable("This session's agent version is gone.")
            frozen = _decoder.decode(text)
        if version not in self._by_hash:
            # The one used last goes last: clients make versions, so there is no end of them.
            self._others[version] = frozen
            if len(self._others) > _REMEMBERED:
                del self._others[next(iter(self._others))]
        return frozen


def _addressed(frozen: FrozenAgent) -> tuple[bytes, str]:
    text = msgspec.json.encode(frozen)
    return hashlib.sha256(text).digest(), text.decode()
