"""Who may be named how: the registry behind test_isolation.py, and the users it is tried with.

To teach it something new, add one line:
  * a new operation: to OPERATIONS, by its operationId;
  * a new path parameter: to PARAMETERS, by its name;
  * something of a user that has to be there first: to BELONGINGS.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import uuid4

import asyncpg
import jwt

from .client import Client, say, seen, take
from .stack import Site

Ids: TypeAlias = Mapping[str, str]
"""Path parameter -> value."""
Kind: TypeAlias = Literal["names", "creates", "own", "public", "ends"]

ENVIRONMENT = {"LOG_LEVEL": "debug", "LEASE_SECONDS": "30"}
"""Settings of the server under test. Where a limit of requests refuses the matrix, raise it here."""


class Probe(NamedTuple):
    """One way to ask an operation; where body, query or headers say "$name", the id of that name stands.

    `kind`: *names* something by id, and whoever it does not belong to gets what an id gets that is nowhere;
    *creates* under an id that the client makes, and gets for a taken id what it gets for anybody else's;
    *own* is about the asking user alone; *public* needs no token; *ends* the asking user: tried last.
    """

    kind: Kind
    body: Any = None
    query: dict[str, str] | None = None
    headers: dict[str, str] | None = None


def filled(template: Any, ids: Ids) -> Any:
    """Return a body, a query or headers with the ids put in."""
    if isinstance(template, str):
        return ids[template[1:]] if template[:1] == "$" else template
    if isinstance(template, dict):
        return {key: filled(value, ids) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, ids) for value in template]
    return template


class Parameter(NamedTuple):
    """A path parameter: where a user's own value is found, and one that is nowhere.

    `find` is a query with the user's id as $1; None: a word that is the same for everybody.
    """

    find: str | None
    nowhere: Callable[[], str]


def _uuid() -> str:
    return str(uuid4())


def _call() -> str:
    return "toolu_" + uuid4().hex[:24]


def _word(word: str) -> Callable[[], str]:
    return lambda: word


PARAMETERS: dict[str, Parameter] = {
    # The parked session has a turn and a call: ids that belong together.
    "session_id": Parameter("SELECT session_id FROM myhealth.tool_calls WHERE user_id = $1", _uuid),
    "turn_id": Parameter("SELECT turn_id FROM myhealth.tool_calls WHERE user_id = $1", _uuid),
    "call": Parameter("SELECT id FROM myhealth.tool_calls WHERE user_id = $1", _call),
    "agent": Parameter(None, _word("coach")),
    "purpose": Parameter(None, _word("third_party_ai")),
    "goal_id": Parameter("SELECT id FROM myhealth.goals WHERE user_id = $1", _uuid),
}
IN_BODIES: dict[str, Parameter] = {
    "sample": Parameter("SELECT id FROM myhealth.health_quantities WHERE user_id = $1", _uuid),
    "cursor": Parameter(
        "SELECT settled_epoch || '-' || settled_n FROM myhealth.sessions WHERE user_id = $1 LIMIT 1",
        _word("1795492129116-7"),
    ),
    "place": Parameter(
        "SELECT to_char(created_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00') || '~' || id"
        " FROM myhealth.sessions WHERE user_id = $1 LIMIT 1",
        lambda: f"2026-11-01T00:00:00+00:00~{uuid4()}",
    ),
}
"""The same for what is named in bodies, queries and headers."""


_SPAN = {"start": "2026-11-01T08:00:00Z", "end": "2026-11-01T09:00:00Z", "source": "Watch", "device": "watch"}
_STEPS = {"kind": "quantity", "id": "$sample", "metric": "steps", "value": 1.0, "unit": "count", **_SPAN}
_GOAL = {"kind": "steps_per_day", "target": 8000}
_HELLO = {"content": say(tokens=1)}
_RUN = {"threadId": "$session_id", "runId": "$turn_id"}
_SAID = {"id": "m", "role": "user", "content": say(tokens=1)}
_RESULT = {"id": "m", "role": "tool", "toolCallId": "$call", "content": "62"}
_YES = {"interruptId": "$call", "status": "resolved", "payload": {"approved": True}}
_DAYS = {"metric": "steps", "start": "2026-10-31", "end": "2026-11-02"}
_NOW = {"wait": "0"}
_STREAMED = {"Accept": "text/event-stream", "Last-Event-ID": "$cursor"}

OWN, PUBLIC, NAMES = Probe("own"), Probe("public"), Probe("names")

OPERATIONS: dict[str, tuple[Probe, ...]] = {
    "put_session": (Probe("creates", {"agent": "coach"}),),
    "get_session": (NAMES,),
    "list_sessions": (OWN, Probe("own", query={"before": "$place"})),
    "list_messages": (NAMES, Probe("names", query={"after": "1", "limit": "1"})),
    "put_turn": (
        Probe("names", _HELLO),
        Probe("names", {**_HELLO, "on_busy": "interrupt"}),
        Probe("names", _HELLO, headers=_STREAMED),
    ),
    "get_turn": (NAMES,),
    "cancel_turn": (NAMES,),
    "follow_session": (
        Probe("names", query=_NOW),
        Probe("names", query={**_NOW, "after": "$cursor"}),
        Probe("names", query=_NOW, headers={"Last-Event-ID": "$cursor"}),
    ),
    "list_tool_calls": (NAMES,),
    "claim_tool_call": (Probe("names", {"device": "b"}),),
    "put_tool_result": (Probe("names", {"status": "ok", "content": "b"}),),
    "run_agent": (
        Probe("creates", {**_RUN, "messages": [_SAID]}),
        Probe("names", {**_RUN, "messages": [_RESULT]}),
        Probe("names", {**_RUN, "messages": [], "resume": [_YES]}),
    ),
    "list_agents": (OWN,),
    "put_samples": (Probe("own", {"samples": [{**_STEPS, "value": 2.0}]}),),
    "get_daily": (Probe("own", query=_DAYS),),
    "get_profile": (OWN,),
    "put_profile": (Probe("own", {"time_zone": "UTC", "locale": "en"}),),
    "list_consents": (OWN,),
    "get_my_consents": (OWN,),
    "put_consent": (Probe("own", {"version": "2026-01-01", "text_hash": "0" * 64, "locale": "en"}),),
    "delete_consent": (Probe("ends"),),
    "get_usage": (OWN,),
    # Ids of goals are scoped to their user: A's is free for B.
    "list_goals": (OWN,),
    "put_goal": (Probe("own", _GOAL),),
    "delete_goal": (OWN,),
    "export_me": (OWN,),
    "erase_me": (Probe("ends"),),
    "livez": (PUBLIC,),
    "readyz": (PUBLIC,),
    "version": (PUBLIC,),
}
SOCKETS = {"stream"}
"""WebSocket operations; test_isolation.py speaks their frames."""


def ends(name: str) -> bool:
    """Say whether an operation is the last that a user asks."""
    return any(probe.kind == "ends" for probe in OPERATIONS.get(name, ()))


class Unregistered(AssertionError):
    """The document has something that the registry does not know; the text says what to write where."""


class Operation(NamedTuple):
    """An operation of the document."""

    method: str
    path: str
    name: str
    parameters: list[str]
    streams: bool


def operations(document: dict[str, Any]) -> list[Operation]:
    """Return every operation of the document but the WebSockets. Raises Unregistered."""
    found: list[Operation] = []
    for path, item in document["paths"].items():
        for method, described in item.items():
            name = described["operationId"]
            if name in SOCKETS:
                continue
            parameters = re.findall(r"{(\w+)}", path)
            _known(name, f"{method.upper()} {path}", parameters)
            streams = any(
                "text/event-stream" in reply.get("content", {}) for reply in described["responses"].values()
            )
            found.append(Operation(method.upper(), path, name, parameters, streams))
    return found


def _known(name: str, spelled: str, parameters: list[str]) -> None:
    if name not in OPERATIONS:
        raise Unregistered(
            f"operation {name} ({spelled}) is not in OPERATIONS of acceptance/isolation.py. Say there how it "
            'is asked and what it names: "names" something by id, "creates" under the client\'s id, is the '
            'asking user\'s "own", or is "public".'
        )
    for each in parameters:
        if each not in PARAMETERS:
            raise Unregistered(
                f"path parameter {{{each}}} of {name} ({spelled}) is not in PARAMETERS of "
                "acceptance/isolation.py. Say there how a user's own value is found in the database."
            )


# --- users --------------------------------------------------------------------------------------------

HEART = {
    "name": "read_heart",
    "description": "Reads the heart rate on the phone.",
    "input_schema": {"type": "object", "properties": {"day": {"type": "string"}}},
}


class Belongings(NamedTuple):
    """A user, what it owns by parameter, and the strings that nobody else may ever see."""

    name: str
    user_id: str
    ids: dict[str, str]
    secrets: frozenset[str]


BELONGINGS: list[tuple[str, str, Any]] = [
    ("PUT", "/v1/me/profile", {"time_zone": "Europe/Berlin", "locale": "de", "birth_year": 1985}),
    (
        "PUT",
        "/v1/health/samples",
        {
            "samples": [
                {**_STEPS, "source": "$canary"},
                {"kind": "sleep", "id": "$other", "stage": "core", **_SPAN},
                {
                    "kind": "workout",
                    "id": "$other",
                    "activity": "running",
                    "duration_s": 60,
                    "note": "$canary",
                    **_SPAN,
                },
                {"kind": "activity_summary", "id": "$other", "date": "2026-11-01", "active_energy_kcal": 500},
            ]
        },
    ),
    ("PUT", "/v1/me/goals/$goal", {**_GOAL, "title": "$canary"}),
    ("GET", "/v1/health/daily?metric=steps&start=2026-10-31&end=2026-11-02", None),
]
"""Requests that give a user what there is beside conversations: $sample and $other are new ids."""


async def furnish(client: Client, database: asyncpg.Connection, name: str, user_id: str) -> Belongings:
    """Give a user one of everything: a conversation, a turn that waits for a device, health data."""
    canary = f"canary-{name}-{uuid4().hex}"
    given = {"sample": _uuid(), "other": _uuid(), "goal": _uuid(), "canary": canary}
    await client.consent()
    for method, path, body in BELONGINGS:
        options = {} if body is None else {"json": filled(body, given)}
        status, answer = await client.call(method, path.replace("$goal", given["goal"]), **options)
        assert status in (200, 201, 204), (method, path, answer)
    said = say(f"{canary} my pulse", text=canary, tool="read_heart", args={})
    session = await _titled(client, canary)
    turn = await client.begin(session, said)
    await take(client.sse(session, turn["cursor"]), seen("CUSTOM"))
    talk = await _titled(client, canary)
    await take(client.answer(talk, say(canary, text=canary)))
    ids: dict[str, str] = {}
    for parameter, known in {**PARAMETERS, **IN_BODIES}.items():
        value = known.nowhere() if known.find is None else await database.fetchval(known.find, user_id)
        assert value is not None, f"{name} has nothing for {parameter}: add what makes it to BELONGINGS"
        ids[parameter] = str(value)
    secrets = {ids[each] for each in ids if tells(each)} | {canary, user_id, talk}
    return Belongings(name, user_id, ids, frozenset(secrets))


def tells(parameter: str) -> bool:
    """Say whether a value is a user's alone; positions in a log are only numbers."""
    known = {**PARAMETERS, **IN_BODIES}[parameter]
    return known.find is not None and parameter != "cursor"


async def _titled(client: Client, title: str) -> str:
    session = _uuid()
    body = {"agent": "coach", "title": title, "device_tools": [HEART]}
    status, answer = await client.call("PUT", f"/v1/sessions/{session}", json=body)
    assert status == 201, answer
    return session


def nowhere() -> dict[str, str]:
    """Return ids that nothing has."""
    return {name: known.nowhere() for name, known in {**PARAMETERS, **IN_BODIES}.items()}


def token(site: Site, user_id: str, *, seconds: int = 600, **claims: Any) -> str:
    """Sign a token with the site's development key; with negative `seconds` it has expired."""
    folder = Path(site.environment()["DEV_KEY_DIR"])
    header = jwt.get_unverified_header(site.headers()["Authorization"].removeprefix("Bearer "))
    now = int(time.time())
    payload = {
        "iss": "https://development.invalid/auth/v1",
        "aud": "authenticated",
        "sub": user_id,
        "role": "authenticated",
        "iat": now + min(seconds, 0),
        "exp": now + seconds,
        **claims,
    }
    pem = (folder / "private-key.pem").read_bytes()
    return jwt.encode(payload, pem, "ES256", headers={"kid": header["kid"]})


async def dump(database: asyncpg.Connection, user_id: str) -> dict[str, list[str]]:
    """Return every row of a user as text, by table; tables are those with a column user_id."""
    tables = await database.fetch(
        "SELECT table_name FROM information_schema.columns JOIN information_schema.tables"
        " USING (table_schema, table_name)"
        " WHERE table_schema = 'myhealth' AND column_name = 'user_id' AND table_type = 'BASE TABLE'"
    )
    rows: dict[str, list[str]] = {}
    for table in sorted(row[0] for row in tables):
        query = f"SELECT t::text FROM myhealth.{table} t WHERE user_id = $1 ORDER BY 1"
        rows[table] = [row[0] for row in await database.fetch(query, user_id)]
    return rows
