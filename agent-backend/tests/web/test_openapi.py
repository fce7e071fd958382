from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jsonschema_rs
import msgspec
import pytest
from starlette.responses import Response

from agent_backend.app import OPERATIONS, SOCKETS
from agent_backend.web.openapi import document
from agent_backend.web.operations import Call, EventStream, SocketCall, operation, reply, socket

CHECKED_IN = Path(__file__).resolve().parents[3] / "protocol" / "openapi.json"


class Note(msgspec.Struct):
    content: str


class Paging(msgspec.Struct):
    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100, description="at most")] = 20


class Started(msgspec.Struct, tag="started"):
    id: str


class Ended(msgspec.Struct, tag="ended"):
    id: str


@operation(
    "PUT",
    "/notes/{note_id}",
    body=Note,
    query=Paging,
    tag="notes",
    summary="Keep a note",
    replies={200: Note, 201: Note},
    stream=EventStream("What happens to the note.", Started | Ended),
    problems=(404, 409),
)
async def put_note(_call: Call[Note, Paging]) -> Response:
    return reply(None)


@socket("/live", client=Note, server=Started | Ended, summary="Follow notes")
async def live(call: SocketCall) -> None:
    await call.accept()


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return document((put_note,), (live,))


def test_every_status_an_operation_can_answer_is_there(made: dict[str, Any]) -> None:
    responses = made["paths"]["/notes/{note_id}"]["put"]["responses"]
    problems = ["400", "401", "403", "404", "408", "409", "410", "413", "415", "422", "429", "503"]
    assert sorted(responses) == ["200", "201", *problems]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(responses["201"]["content"]) == {"application/json"}


def test_parameters_come_from_path_and_query_struct(made: dict[str, Any]) -> None:
    put = made["paths"]["/notes/{note_id}"]["put"]
    note_id, after, limit = put["parameters"]
    assert (note_id["in"], note_id["schema"]) == ("path", {"type": "string", "format": "uuid"})
    assert (after["required"], after["schema"]) == (False, {"type": "string"})
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    assert limit["description"] == "at most"
    assert "Paging" not in made["components"]["schemas"]


def test_events_and_frames_are_described(made: dict[str, Any]) -> None:
    stream = made["paths"]["/notes/{note_id}"]["put"]["responses"]["200"]["content"]["text/event-stream"]
    frames = made["paths"]["/live"]["get"]["x-websocket"]
    assert stream["x-itemSchema"] == frames["server"]
    assert {each["$ref"] for each in frames["server"]["anyOf"]} == {
        "#/components/schemas/Started",
        "#/components/schemas/Ended",
    }
    assert "101" in made["paths"]["/live"]["get"]["responses"]


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
        return own.union(*(_references(each) for each in node.values()))
    if isinstance(node, list):
        return set[str]().union(*(_references(each) for each in node))
    return set()


@pytest.mark.parametrize("which", ["made", "ours"])
def test_every_reference_resolves_and_every_schema_is_one(which: str, made: dict[str, Any]) -> None:
    whole = made if which == "made" else document(OPERATIONS, SOCKETS)
    for reference in _references(whole):
        node = whole
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    for schema in whole["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_what_was_made_links_to_what_can_be_asked_of_it() -> None:
    paths = document(OPERATIONS, SOCKETS)["paths"]
    made = paths["/v1/sessions/{session_id}"]["put"]["responses"]["201"]["links"]
    assert made["put_turn"] == {
        "operationId": "put_turn",
        "parameters": {"session_id": "$request.path.session_id"},
    }
    assert {"get_session", "list_messages", "follow_session", "list_tool_calls"} <= set(made)
    assert "put_tool_result" not in made, "a call's id is the server's"
    taken = paths["/v1/sessions/{session_id}/turns/{turn_id}"]["put"]["responses"]["202"]["links"]
    assert taken["cancel_turn"]["parameters"] == {
        "session_id": "$request.path.session_id",
        "turn_id": "$request.path.turn_id",
    }
    assert "links" not in paths["/v1/sessions/{session_id}"]["put"]["responses"]["404"]


def test_operation_ids_are_unique() -> None:
    whole = document(OPERATIONS, SOCKETS)
    ids = [each["operationId"] for path in whole["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))


def test_the_checked_in_document_is_fresh() -> None:
    assert msgspec.json.decode(CHECKED_IN.read_bytes()) == document(OPERATIONS, SOCKETS)
