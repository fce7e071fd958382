"""The tools a client declares for a session: what it may say, and where it says it wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent_backend.agents import Agent
from agent_backend.errors import FieldError, InvalidRequest
from agent_backend.turns.versions import DeviceTool
from agent_backend.web.requests import clean_text

MAX_TOOLS = 32
MAX_BYTES = 32_000
"""Of all declarations together, as JSON: they stand in every model call of the session."""
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
"""What the Messages API takes as a tool's name."""


class DeviceToolPut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool that the client runs. `effects`: it changes something, so one device must claim a call first."""

    name: Annotated[str, Meta(pattern=NAME)]
    description: Annotated[str, Meta(min_length=1, max_length=4000)]
    input_schema: dict[str, Any]
    effects: bool = False


def declared(tools: list[DeviceToolPut], agent: Agent, root: str = "$.device_tools") -> list[DeviceTool]:
    """Return the tools as they are frozen with the session. Raises InvalidRequest, which names the field."""
    if not tools:
        return []
    if not agent.device_tools:
        raise _invalid(root, "this agent takes no device tools")
    if len(tools) > MAX_TOOLS:
        raise _invalid(root, f"has more than {MAX_TOOLS} tools")
    seen = dict.fromkeys(agent.tools, "is a tool of the server")
    out: list[DeviceTool] = []
    for index, tool in enumerate(tools):
        field = f"{root}[{index}]"
        if tool.name in seen:
            raise _invalid(f"{field}.name", seen[tool.name])
        seen[tool.name] = "is declared twice"
        if tool.input_schema.get("type") != "object":
            raise _invalid(f"{field}.input_schema.type", "must be 'object'")
        out.append(
            DeviceTool(
                name=tool.name,
                description=clean_text(f"{field}.description", tool.description, 4000),
                input_schema=tool.input_schema,
                effects=tool.effects,
            )
        )
    if len(msgspec.json.encode(out)) > MAX_BYTES:
        raise _invalid(root, f"is larger than {MAX_BYTES} bytes")
    return out


def from_agui(tools: list[dict[str, Any]], agent: Agent) -> list[DeviceTool]:
    """Return the frontend tools of an AG-UI client; an agent that takes none ignores them.

    Raises InvalidRequest, which names the field.
    """
    if not agent.device_tools:
        return []
    read: list[DeviceToolPut] = []
    for index, tool in enumerate(tools):
        given: Mapping[str, Any] = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "input_schema": tool.get("parameters") or {"type": "object", "properties": {}},
        }
        try:
            read.append(msgspec.convert(given, DeviceToolPut))
        except msgspec.ValidationError as error:
            raise _invalid(f"$.tools[{index}]", str(error)) from None
    return declared(read, agent, "$.tools")


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {reason}", errors=(FieldError(field, reason),))
