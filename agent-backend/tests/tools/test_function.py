from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from msgspec import Meta, Struct

from agent_backend.db.pool import Database
from agent_backend.errors import ModelRetry, ToolFailed
from agent_backend.tools.base import ToolContext, ToolResult
from agent_backend.tools.function import tool

ANYBODY = UUID(int=0)
CONTEXT = ToolContext(
    db=Database("postgresql://nowhere.invalid/x", min_size=1, max_size=1, lock_timeout_ms=1000),
    user_id=ANYBODY,
    session_id=ANYBODY,
    turn_id=ANYBODY,
    tool_use_id="toolu_1",
    time_zone="UTC",
    locale="en",
    now=dt.datetime(2026, 5, 1, tzinfo=dt.UTC),
)


class Place(Struct, forbid_unknown_fields=True):
    """Somewhere."""

    city: str


@tool
async def look_up(
    context: ToolContext,
    day: Annotated[dt.date, "Which day"],
    kind: Annotated[Literal["a", "b"], "Which kind"] = "a",
    count: Annotated[int, Meta(ge=1, le=9, description="How many")] = 3,
    place: Annotated[Place | None, "Where"] = None,
) -> Any:
    """Look something up.

    More about it.
    """
    if kind == "b":
        raise ToolFailed("there is no b")
    return {"day": day, "count": count, "city": place and place.city, "zone": context.time_zone}


def test_name_description_and_schema_come_from_the_function() -> None:
    assert look_up.name == "look_up"
    assert look_up.description == "Look something up.\n\nMore about it."
    assert look_up.input_schema == {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date", "description": "Which day"},
            "kind": {"enum": ["a", "b"], "description": "Which kind", "default": "a"},
            "count": {
                "type": "integer",
                "minimum": 1,
                "maximum": 9,
                "description": "How many",
                "default": 3,
            },
            "place": {
                "anyOf": [
                    {
                        "title": "Place",
                        "description": "Somewhere.",
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                    {"type": "null"},
                ],
                "description": "Where",
                "default": None,
            },
        },
        "required": ["day"],
        "additionalProperties": False,
    }


async def test_arguments_arrive_with_their_types_and_defaults() -> None:
    result = await look_up.run(CONTEXT, {"day": "2026-01-02", "place": {"city": "Köln"}})
    assert result == ToolResult(content='{"day":"2026-01-02","count":3,"city":"Köln","zone":"UTC"}')


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"day": "tomorrow"}, "Argument `day`: Invalid RFC3339 encoded date."),
        ({"day": "2026-01-02", "kind": "c"}, "Argument `kind`: Invalid enum value 'c'. Allowed: a, b."),
        ({"day": "2026-01-02", "count": 10}, "Argument `count`: Expected `int` <= 9."),
        ({"day": "2026-01-02", "count": "3"}, "Argument `count`: Expected `int`, got `str`."),
        ({"day": "2026-01-02", "place": {"city": 1}}, "Argument `place.city`: Expected `str`, got `int`."),
        ({}, "Argument `day` is missing."),
        (
            {"day": "2026-01-02", "x": 1},
            "Argument `x` does not exist; there are ['day', 'kind', 'count', 'place'].",
        ),
    ],
)
async def test_a_wrong_call_tells_the_model_what_to_mend(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelRetry) as raised:
        await look_up.run(CONTEXT, arguments)
    assert str(raised.value) == told


async def test_what_the_function_raises_passes() -> None:
    with pytest.raises(ToolFailed, match="there is no b"):
        await look_up.run(CONTEXT, {"day": "2026-01-02", "kind": "b"})


async def test_a_tool_result_passes_as_it_is() -> None:
    async def act(_context: ToolContext) -> ToolResult:
        """Act."""
        return ToolResult(content="done", is_error=True)

    assert await tool(act).run(CONTEXT, {}) == ToolResult(content="done", is_error=True)


def test_a_tool_needs_a_docstring() -> None:
    async def silent(_context: ToolContext) -> str:
        return ""

    with pytest.raises(TypeError, match="silent needs a docstring"):
        tool(silent)


def test_an_argument_needs_a_description() -> None:
    async def vague(_context: ToolContext, day: dt.date) -> str:
        """Do something."""
        return str(day)

    with pytest.raises(TypeError, match="vague: argument day needs a description"):
        tool(vague)
