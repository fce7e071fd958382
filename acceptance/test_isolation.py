"""Every operation, every id: what is A's does not exist for B, and nothing of B's asking changes it.

The matrix comes from the published document; `isolation.py` says how each operation is asked. B gets for A's
ids what it gets for ids that are nowhere: the same status, headers and body, by the same statements
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from . import isolation
from .client import PATIENCE, Client
from .isolation import OPERATIONS, Belongings, Operation, Probe
from .stack import Backend, Site
from .tap import Tap, tapped

DOCUMENT = json.loads(
    (Path(__file__).resolve().parent.parent / "protocol" / "openapi.json").read_text(encoding="utf-8")
)
LEAST_PAIRS = 140
LEAST_QUESTIONS = 60
PER_REQUEST = {"x-request-id", "date"}
WHEN_DONE = {"turn-cursor", "content-length"}
"""Headers that differ between two things that were made; a refusal has the same."""


class Answer(NamedTuple):
    """What a request got."""

    status: int
    headers: dict[str, str]
    text: str


class House:
    """A server of its own under the least login, what it asks Postgres, and three users."""

    def __init__(self, backend: Backend, tap: Tap, site: Site, http: aiohttp.ClientSession) -> None:
        self.backend = backend
        self.tap = tap
        self.site = site
        self.http = http
        self.a = self.b = self.c = Belongings("", "", {}, frozenset())
        self.newcomer = str(uuid4())
        self.tokens: dict[str, str] = {}

    async def ask(
        self, operation: Operation, probe: Probe, ids: dict[str, str], authorization: str | None
    ) -> Answer:
        """Send one request and read its whole answer."""
        path = operation.path
        for name in operation.parameters:
            path = path.replace(f"{{{name}}}", ids[name])
        headers = isolation.filled(probe.headers or {}, ids)
        if authorization is not None:
            headers["Authorization"] = f"Bearer {authorization}"
        options: dict[str, Any] = {"headers": headers, "params": isolation.filled(probe.query, ids)}
        if probe.body is not None:
            options["json"] = isolation.filled(probe.body, ids)
        async with (
            asyncio.timeout(PATIENCE),
            self.http.request(operation.method, self.backend.url + path, **options) as response,
        ):
            text = _text(response.content_type, await response.read())
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, text)


def _text(content_type: str, body: bytes) -> str:
    """Return a body as text, an archive's files one after the other."""
    if content_type != "application/zip":
        return body.decode()
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return "\n".join(archive.read(name).decode() for name in archive.namelist())


@pytest.fixture(scope="module")
def served(site: Site) -> Generator[tuple[Backend, Tap]]:
    """Run a server whose login may do nothing but be the server's role."""
    name, password = f"login_{uuid4().hex[:12]}", uuid4().hex
    asyncio.run(
        _execute(
            site.database_url,
            f"CREATE ROLE {name} LOGIN NOINHERIT PASSWORD '{password}'",
            f"GRANT agent_backend TO {name}",
        )
    )
    try:
        with (
            tapped(site.database_url, name, password) as (tap, url),
            site.server("isolation", DATABASE_URL=url, **isolation.ENVIRONMENT) as backend,
        ):
            yield backend, tap
    finally:
        asyncio.run(_execute(site.database_url, f"DROP ROLE {name}"))


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def house(
    site: Site, served: tuple[Backend, Tap], database: asyncpg.Connection
) -> AsyncGenerator[House]:
    """Yield the server with three users who each have one of everything."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        made = House(*served, site, http)
        for name in ("a", "b", "c"):
            user = str(uuid4())
            made.tokens[name] = isolation.token(site, user)
            headers = {"Authorization": f"Bearer {made.tokens[name]}"}
            async with aiohttp.ClientSession(headers=headers) as own:
                belongings = await isolation.furnish(Client(own, made.backend.url), database, name, user)
            setattr(made, name, belongings)
        made.tokens["newcomer"] = isolation.token(site, made.newcomer)
        made.tokens["expired"] = isolation.token(site, made.b.user_id, seconds=-3600)
        yield made


def same(asked: Answer, other: Answer, ids: dict[str, str], other_ids: dict[str, str]) -> bool:
    """Compare two answers with the ids that were asked for taken out."""
    return _told(asked, ids) == _told(other, other_ids)


def _told(answer: Answer, ids: dict[str, str]) -> tuple[int, dict[str, str], Any]:
    done = answer.status < 400
    left_out = PER_REQUEST | (WHEN_DONE if done else set())
    headers = {name: value for name, value in answer.headers.items() if name not in left_out}
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    if not done:
        problem = json.loads(text)
        problem.pop("request_id")
        return answer.status, headers, problem
    # Of what was made or is B's own only the form: cursors and times are of the moment.
    shape = sorted(json.loads(text)) if "json" in answer.headers.get("content-type", "") else ""
    return answer.status, headers, shape


NEITHER: tuple[str | None, ...] = ("b", "newcomer", "expired", None)
"""Who asks for what is not theirs: somebody with things of their own, somebody new, and nobody."""


def _changing(operation: Operation) -> list[str]:
    """Return the path parameters that differ from user to user."""
    return [name for name in operation.parameters if isolation.PARAMETERS[name].find is not None]


class Matrix:
    """Tries pairs and keeps what came through."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.pairs = 0
        self.questions = 0
        """Statements of which there were as many for A's ids as for those of nowhere."""
        self.leaks: list[str] = []
        self.nowhere = isolation.nowhere()
        """The same for all pairs: what B makes under such an id stands there at the next, as under A's."""
        self._asking = [*_encoded(house.b.user_id), *_encoded(house.newcomer)]
        self.accepted: set[str] = set()
        """Ids of A under which B has made something of its own."""

    def check(self, right: object, what: str) -> None:
        if not right:
            self.leaks.append(what)

    async def strange(self, operation: Operation, *askers: str | None) -> None:
        """Ask for what is A's, beside what is nowhere: nothing of that is B's, so nothing may happen."""
        house = self.house
        for index, probe in enumerate(OPERATIONS[operation.name]):
            name = f"{operation.name}[{index}]"
            others = house.c.ids if probe.kind == "creates" else self.nowhere
            await self._pair(operation, probe, house.a.ids, others, name, *askers)
            if probe.kind == "names":
                for each in _changing(operation)[:-1]:
                    ids = {**self.nowhere, each: house.a.ids[each]}
                    await self._pair(operation, probe, ids, self.nowhere, f"{name} {each}", *askers)

    async def mixed(self, operation: Operation) -> None:
        """Ask for what is below something of B's own, by one of A's ids: B may make its own under it."""
        own = self.house.b.ids
        for index, probe in enumerate(OPERATIONS[operation.name]):
            for each in _changing(operation)[1:] if probe.kind == "names" else []:
                ids, others = {**own, each: self.house.a.ids[each]}, {**own, each: self.nowhere[each]}
                await self._pair(operation, probe, ids, others, f"own {operation.name}[{index}] {each}", "b")

    async def _pair(
        self,
        operation: Operation,
        probe: Probe,
        ids: dict[str, str],
        others: dict[str, str],
        what: str,
        *askers: str | None,
    ) -> None:
        house = self.house
        for who in askers:
            token = None if who is None else house.tokens[who]
            mark = len(house.tap.asked)
            answer = await house.ask(operation, probe, ids, token)
            middle = len(house.tap.asked)
            other = await house.ask(operation, probe, others, token)
            self.pairs += 1
            where = (
                f"{what} as {who}: {answer.status} {answer.text[:300]} | {other.status} {other.text[:300]}"
            )
            assert answer.status != 429, f"{where}: raise the limits in isolation.ENVIRONMENT"
            self.check(same(answer, other, ids, others), f"differs: {where}")
            self._check_status(probe, who, answer, what, where)
            self._check_text(answer, operation, probe, ids, where)
            if house.tokens.get(who or "") and not what.startswith("own") and probe.kind != "public":
                self._check_questions(mark, middle, ids, others, where)

    def _check_status(self, probe: Probe, who: str | None, answer: Answer, what: str, where: str) -> None:
        if probe.kind == "public":
            self.check(answer.status == 200, where)
        elif who in ("expired", None):
            self.check(answer.status == 401, f"without a token: {where}")
        elif probe.kind not in ("own", "ends") and not what.startswith("own"):
            self.check(answer.status == 404, f"is there: {where}")
        else:
            self.check(answer.status < 500, where)

    def _check_text(
        self, answer: Answer, operation: Operation, probe: Probe, ids: dict[str, str], where: str
    ) -> None:
        """Look for anything of A's, but for ids that B has sent and made something of its own under."""
        told = answer.text + json.dumps(answer.headers)
        sent = {ids[name] for name in (*operation.parameters, *(["sample"] if probe.kind == "own" else []))}
        if answer.status < 300:
            self.accepted |= sent & self.house.a.secrets
        else:
            sent = set[str]()
        for secret in self.house.a.secrets - sent:
            self.check(secret not in told, f"tells {secret}: {where}")

    def _check_questions(
        self, mark: int, middle: int, ids: dict[str, str], others: dict[str, str], where: str
    ) -> None:
        """Compare what was asked of Postgres: where that is the same, there is nothing to time."""
        tap = self.house.tap
        end = len(tap.asked)
        first = tap.between(mark, middle, *self._asking, *_all_encoded(ids))
        second = tap.between(middle, end, *self._asking, *_all_encoded(others))
        # What the server knows of the asker's own consents it remembers for a second.
        first, second = (
            [each for each in asked if "missing_consents" not in each] for asked in (first, second)
        )
        self.questions += len(first)
        self.check(first == second, f"asks otherwise: {first} | {second}: {where}")


def _encoded(value: str) -> tuple[bytes, ...]:
    """Return how a value may stand among a statement's arguments: as text, and a UUID as its bytes."""
    text = value.encode()
    plain = value.replace("-", "")
    is_uuid = len(plain) == 32 and all(each in "0123456789abcdef" for each in plain)
    return (text, bytes.fromhex(plain)) if is_uuid else (text,)


def _all_encoded(ids: dict[str, str]) -> list[bytes]:
    return [each for name, value in ids.items() if isolation.tells(name) for each in _encoded(value)]


async def test_b_finds_nothing_of_a_by_any_operation(house: House, database: asyncpg.Connection) -> None:
    before = await isolation.dump(database, house.a.user_id)
    assert [table for table, rows in before.items() if not rows] == [], "give A one in isolation.BELONGINGS"
    matrix = Matrix(house)
    logged = len(house.backend.log)
    await _introduce(house, matrix.nowhere)
    for operation in isolation.operations(DOCUMENT):
        if not isolation.ends(operation.name):
            await matrix.strange(operation, *NEITHER)
    for operation in isolation.operations(DOCUMENT):
        await matrix.mixed(operation)
    await _sockets(matrix)
    for operation in isolation.operations(DOCUMENT):
        if isolation.ends(operation.name):
            await matrix.strange(operation, "expired", None, "newcomer")
    matrix.check(await isolation.dump(database, house.a.user_id) == before, "rows of A have changed")
    said = json.dumps(house.backend.log[logged:])
    for secret in house.a.secrets - matrix.accepted:
        matrix.check(secret not in said, f"the log tells {secret}")
    for name, token in house.tokens.items():
        matrix.check(token not in said, f"the log tells {name}'s token")
    statements = "".join({each.statement for each in house.tap.asked})
    for secret in house.a.secrets | house.b.secrets:
        matrix.check(secret not in statements, f"a statement was put together with {secret}")
    print(f"pairs tried: {matrix.pairs}, statements compared: {matrix.questions}, leaks: {len(matrix.leaks)}")
    assert not matrix.leaks, "\n".join(matrix.leaks)
    assert matrix.pairs >= LEAST_PAIRS
    assert matrix.questions >= LEAST_QUESTIONS
    assert house.backend.errors() == []


async def _introduce(house: House, nowhere: dict[str, str]) -> None:
    """Let the server read now what it remembers of who asks, and not at one question of a pair."""
    [operation] = [each for each in isolation.operations(DOCUMENT) if each.name == "put_turn"]
    for who in ("b", "newcomer"):
        await house.ask(operation, OPERATIONS["put_turn"][0], nowhere, house.tokens[who])


async def _sockets(matrix: Matrix) -> None:
    """Try the same over WebSocket: subscribe to A's session, with and without A's cursor, then leave it."""
    house, nowhere = matrix.house, matrix.nowhere
    headers = {"Authorization": f"Bearer {house.tokens['b']}"}
    url = house.backend.url + "/v1/stream"
    async with asyncio.timeout(PATIENCE), house.http.ws_connect(url, headers=headers) as socket:
        for after in (None, house.a.ids["cursor"]):
            for kind in ("subscribe", "unsubscribe"):
                told: list[str] = []
                for ids in (house.a.ids, nowhere):
                    frame = {"type": kind, "session": ids["session_id"]}
                    await socket.send_json(frame | ({"after": after} if kind == "subscribe" else {}))
                    told.append((await socket.receive_str()).replace(ids["session_id"], "<session>"))
                matrix.pairs += 1
                matrix.check(told[0] == told[1], f"{kind} differs: {told}")
                matrix.check("not_found" in told[0] or kind == "unsubscribe", f"{kind} tells: {told}")
    for headers in ({}, {"Authorization": f"Bearer {house.tokens['expired']}"}):
        matrix.pairs += 1
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await house.http.ws_connect(url, headers=headers)
        matrix.check(refused.value.status == 401, f"the socket opens with {headers}")


def test_the_registry_names_what_it_does_not_know() -> None:
    """Nobody can add an operation and forget this test."""
    operation = {"operationId": "read_diary", "responses": {}}
    with pytest.raises(
        isolation.Unregistered, match=r"read_diary \(GET /v1/diary/\{diary_id\}\) is not in OPER"
    ):
        isolation.operations({"paths": {"/v1/diary/{diary_id}": {"get": operation}}})
    operation["operationId"] = "get_session"
    with pytest.raises(isolation.Unregistered, match=r"path parameter \{diary_id\} of get_session"):
        isolation.operations({"paths": {"/v1/diary/{diary_id}": {"get": operation}}})


def test_the_registry_knows_nothing_that_is_gone() -> None:
    names = {each["operationId"] for item in DOCUMENT["paths"].values() for each in item.values()}
    assert set(OPERATIONS) | isolation.SOCKETS == names
