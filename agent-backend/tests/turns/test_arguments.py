"""What a client declared is what it gets; held against a full JSON Schema validator."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.turns.arguments import mismatch

DAY = {"type": "string", "minLength": 10, "maxLength": 10}
TOOL = {
    "type": "object",
    "properties": {
        "day": DAY,
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "kind": {"enum": ["a", 1, None]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "place": {"type": ["object", "null"], "properties": {"x": {"type": "number", "exclusiveMinimum": 0}}},
        "either": {"anyOf": [{"type": "boolean"}, DAY]},
    },
    "required": ["day"],
}


@pytest.mark.parametrize(
    ("given_", "wrong"),
    [
        ({"day": "2026-11-01"}, None),
        (
            {"day": "2026-11-01", "count": 9.0, "kind": None, "tags": ["x"], "place": None, "either": True},
            None,
        ),
        ({}, "Argument `day` is missing"),
        ({"day": 1}, "Argument `day` must be of type string"),
        ({"day": "2026-11-01", "count": 10}, "Argument `count` is out of range"),
        ({"day": "2026-11-01", "count": True}, "Argument `count` must be of type integer"),
        ({"day": "2026-11-01", "kind": True}, "Argument `kind` is none of the values allowed"),
        ({"day": "2026-11-01", "tags": ["x", 2]}, "Argument `tags[1]` must be of type string"),
        ({"day": "2026-11-01", "tags": ["x"] * 3}, "Argument `tags` is too short or too long"),
        ({"day": "2026-11-01", "place": {"x": 0}}, "Argument `place.x` is out of range"),
        ({"day": "2026-11-01", "place": {"y": 1}}, "Argument `place.y` is not declared"),
        ({"day": "2026-11-01", "either": 3}, "Argument `either` fits none of what is allowed"),
        ({"day": "2026-11-01", "secret": "x"}, "Argument `secret` is not declared"),
        ([], "The argument object must be of type object"),
    ],
)
def test_what_is_wrong_is_named(given_: Any, wrong: str | None) -> None:
    assert mismatch(TOOL, given_) == wrong


def test_what_is_nested_without_end_is_refused() -> None:
    value: Any = {}
    for _ in range(100):
        value = {"x": value}
    assert "nested too deeply" in (mismatch({"additionalProperties": True}, value) or "")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([0.5, 2.0])
    | st.sampled_from(["", "2026-11-01"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*TOOL["properties"], "x", "y"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def _closed(node: Any) -> Any:
    """Return the schema with every object closed, as we read it."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    return closed | ({"additionalProperties": False} if "properties" in node else {})


VALIDATOR = jsonschema_rs.validator_for(_closed(TOOL))


@given(JSON)
def test_nothing_gets_through_that_a_full_validator_refuses_nor_the_other_way_round(value: Any) -> None:
    if isinstance(value, dict) and isinstance(value.get("place"), dict):
        value = value | {"place": {key: each for key, each in value["place"].items() if key == "x"}}
    assert (mismatch(TOOL, value) is None) == VALIDATOR.is_valid(value)


@given(JSON, JSON)
def test_no_schema_a_client_may_send_breaks_it(schema: Any, value: Any) -> None:
    names = ("type", "enum", "properties", "required", "items", "anyOf", "minimum", "additionalProperties")
    for name in names:
        mismatch({"type": "object", name: schema}, value)
        mismatch({name: schema}, value)
