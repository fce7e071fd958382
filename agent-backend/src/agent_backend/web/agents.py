"""Which agents there are to talk to."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from agent_backend.web.operations import Call, operation, reply


class AgentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as clients choose it."""

    name: str
    description: str
    model: str
    device_tools: bool
    """A session may declare tools that the client runs."""


class Agents(msgspec.Struct, frozen=True):
    """All agents of this deployment, by name."""

    agents: list[AgentSummary]


@operation(
    "GET",
    "/v1/agents",
    summary="List the agents",
    tag="agents",
    replies={200: Agents},
)
async def list_agents(call: Call[None, None]) -> Response:
    """Answer with name, description and model of each agent; prompts stay here."""
    agents = sorted(call.services.agents.values(), key=lambda agent: agent.name)
    return reply(
        Agents(
            [
                AgentSummary(
                    name=each.name,
                    description=each.description,
                    model=each.model,
                    device_tools=each.device_tools,
                )
                for each in agents
            ]
        )
    )


OPERATIONS = (list_agents,)
