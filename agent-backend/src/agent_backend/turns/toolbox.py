"""Running tools: whatever a tool does, the model gets an answer and the turn goes on."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Collection, Mapping
from uuid import UUID
from zoneinfo import ZoneInfo

from agent_backend.db.pool import Database
from agent_backend.errors import ModelRetry, ToolFailed
from agent_backend.telemetry import Log
from agent_backend.tools.base import Checking, Tool, ToolContext, ToolResult
from agent_backend.turns.fanout import LiveSession
from agent_backend.turns.history import ToolCall
from agent_backend.turns.versions import FrozenAgent

_log = Log("tools")

TIMEOUT_SECONDS = 30.0


class Toolbox:
    """The tools of this process."""

    def __init__(
        self, database: Database, tools: Mapping[str, Tool], timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self._database = database
        self._tools = tools
        self._timeout = timeout

    async def run_all(
        self,
        calls: list[ToolCall],
        live: LiveSession,
        turn_id: UUID,
        agent: FrozenAgent,
        time_zone: str,
        locale: str,
        *,
        approved: Collection[str] = (),
    ) -> list[ToolResult]:
        """Run calls side by side and return their results in order. Only cancellation gets out.

        `approved`: ids of calls the user has said yes to.
        """
        allowed = {tool.name for tool in agent.tools}
        on_approval = {tool.name for tool in agent.approval_tools}
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._run(
                        call,
                        self._context(call, live, turn_id, time_zone, locale),
                        known=call.name in allowed or (call.id in approved and call.name in on_approval),
                    )
                )
                for call in calls
            ]
        return [task.result() for task in tasks]

    async def refusal(
        self, call: ToolCall, live: LiveSession, turn_id: UUID, time_zone: str, locale: str
    ) -> ToolResult | None:
        """Return the error a call would end with, if its tool can say so before it runs.

        A fault of ours is no refusal: it shows when the tool runs.
        """
        tool = self._tools.get(call.name)
        if not isinstance(tool, Checking):
            return None
        try:
            async with asyncio.timeout(self._timeout):
                await tool.check(self._context(call, live, turn_id, time_zone, locale), call.input)
        except (ModelRetry, ToolFailed) as error:
            return ToolResult(content=str(error), is_error=True)
        except Exception as error:  # noqa: BLE001 - the port's law: nothing a tool raises ends the turn
            _log.warning("tool_check_broke", error=error, tool=call.name, turn_id=turn_id)
        return None

    def _context(
        self, call: ToolCall, live: LiveSession, turn_id: UUID, time_zone: str, locale: str
    ) -> ToolContext:
        return ToolContext(
            db=self._database,
            user_id=live.user_id,
            session_id=live.session_id,
            turn_id=turn_id,
            tool_use_id=call.id,
            time_zone=time_zone,
            locale=locale,
            now=dt.datetime.now(ZoneInfo(time_zone)),
        )

    async def _run(self, call: ToolCall, context: ToolContext, *, known: bool) -> ToolResult:
        tool = self._tools.get(call.name) if known else None
        if tool is None:
            return ToolResult(content="There is no tool of this name here.", is_error=True)
        try:
            async with asyncio.timeout(self._timeout):
                return await tool.run(context, call.input)
        except (ModelRetry, ToolFailed) as error:
            return ToolResult(content=str(error), is_error=True)
        except TimeoutError:
            _log.warning("tool_timed_out", tool=call.name, turn_id=context.turn_id)
            return ToolResult(content=f"The tool did not answer within {self._timeout:g} s.", is_error=True)
        except Exception as error:  # noqa: BLE001 - the port's law: nothing a tool raises ends the turn
            _log.error("tool_broke", error=error, tool=call.name, turn_id=context.turn_id)
            return ToolResult(content="The tool is broken right now.", is_error=True)
