"""The agent backend's HTTP API for a chat: sessions, turns, streams that survive the connection.

Whatever changes something is a PUT under an id of ours or can be repeated otherwise, so every request is
retried while the server is away. A stream resumes after the last event it saw (Last-Event-ID): events are
neither lost nor given twice.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from myhealth_cli import events
from myhealth_cli.errors import MyHealthError
from myhealth_cli.events import Event
from myhealth_cli.sse import SseParser

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType
    from uuid import UUID

    from myhealth_cli.tokens import TokenSource

_PASSING: Final = frozenset({429, 502, 503, 504})
_SILENCE_S: Final = 45.0
"""The server sends a heartbeat every 15 s: after three missed ones the connection is dead."""
_AWAY: Final = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)


class ProblemField(msgspec.Struct, frozen=True):
    """One entry of a problem document's `errors`."""

    field: str = ""
    reason: str = ""


class Problem(msgspec.Struct, frozen=True):
    """An RFC 9457 problem document, as far as we print it."""

    title: str = ""
    detail: str = ""
    code: str = ""
    errors: tuple[ProblemField, ...] = ()


class RefusedError(MyHealthError):
    """The server refused a request for good; `status` and `problem` say why."""

    def __init__(self, status: int, problem: Problem) -> None:
        words = problem.detail or problem.title or "no reason given"
        fields = "; ".join(f"{each.field} {each.reason}" for each in problem.errors[:5])
        super().__init__(f"the server refuses ({status}): {words}" + (f" ({fields})" if fields else ""))
        self.status = status
        self.problem = problem


class UnreachableError(MyHealthError):
    """The server did not answer for as long as we were told to be patient."""


class Session(msgspec.Struct, frozen=True):
    """A conversation."""

    id: str
    agent: str
    title: str | None
    created_at: str
    cursor: str


class Turn(msgspec.Struct, frozen=True):
    """A turn: its state, and the cursor after which its events begin."""

    id: str
    state: str
    cursor: str


class History(msgspec.Struct, frozen=True):
    """Settled messages; reading on from `cursor` misses nothing. `next` continues the list."""

    messages: list[events.Message]
    cursor: str
    next: int | None = None


class Profile(msgspec.Struct, frozen=True):
    """What the server knows of the person."""

    time_zone: str = "UTC"
    locale: str = "en"
    birth_year: int | None = None


class ConsentText(msgspec.Struct, frozen=True):
    """A text the server asks the person to agree to; `sha256` names it when they do."""

    purpose: str
    version: str
    locale: str
    title: str
    text: str
    sha256: str


class Consent(msgspec.Struct, frozen=True):
    """What the person has said to a purpose: `given` if there is a consent that counts."""

    purpose: str
    given: bool


class ToolCall(msgspec.Struct, frozen=True):
    """A call that a turn waits for: `kind` device or approval, `input` its arguments."""

    id: str
    turn_id: str
    name: str
    kind: str
    input: dict[str, Any] = {}


class _ToolCalls(msgspec.Struct, frozen=True):
    tool_calls: list[ToolCall]


class _ConsentTexts(msgspec.Struct, frozen=True):
    consents: list[ConsentText]


class _Consents(msgspec.Struct, frozen=True):
    consents: list[Consent]


class Day(msgspec.Struct, frozen=True):
    """One day of a metric: `value` of a cumulative one, `avg` of a discrete one."""

    date: str
    value: float | None = None
    avg: float | None = None


class _Sessions(msgspec.Struct, frozen=True):
    sessions: list[Session]


class _Days(msgspec.Struct, frozen=True):
    days: list[Day]


@dataclass(frozen=True)
class Connection:
    """What a stream tells between events: the connection was lost (and why), or is back."""

    state: Literal["lost", "back"]
    reason: str = ""


Item: TypeAlias = Event | Connection
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try while the server is away, and the pauses between (doubling, with jitter)."""

    total_s: float = 120.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0

    def pauses(self) -> Pauses:
        """Begin to wait."""
        return Pauses(self)


class Pauses:
    """The waiting for one answer; `reset()` when the server was there again."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._began: float | None = None
        self._pause = self._patience.first_pause_s

    async def wait(self, url: str, reason: str, at_least: float = 0.0) -> None:
        """Pause. Raises UnreachableError when it has been long enough."""
        now = asyncio.get_running_loop().time()
        began = self._began = now if self._began is None else self._began
        pause = max(at_least, random.uniform(self._pause / 2, self._pause))  # noqa: S311 - jitter
        if now + pause > began + self._patience.total_s:
            raise UnreachableError(
                f"{url} does not answer: {reason}", hint="Is the backend running? `make run` starts one."
            )
        await asyncio.sleep(pause)
        self._pause = min(self._pause * 2, self._patience.longest_pause_s)


class Client:
    """One user's connection to one server. An async context manager.

    `sending` is called right before each request.
    """

    def __init__(
        self,
        url: str,
        tokens: TokenSource,
        patience: Patience | None = None,
        *,
        sending: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = url.rstrip("/")
        self._tokens = tokens
        self._patience = patience or Patience()
        self._sending = sending

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE_S)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    # --- resources ---

    async def put_session(self, session_id: UUID, *, agent: str = "coach") -> Session:
        """Make a session, or find it made."""
        return await self._ask("PUT", f"/v1/sessions/{session_id}", Session, {"agent": agent})

    async def sessions(self, limit: int = 20) -> list[Session]:
        """Return the newest sessions."""
        return (await self._ask("GET", f"/v1/sessions?limit={limit}", _Sessions)).sessions

    async def history(self, session_id: UUID) -> History:
        """Return all settled messages of a session, and the cursor to read on from."""
        messages: list[events.Message] = []
        after = 0
        while True:
            page = await self._ask("GET", f"/v1/sessions/{session_id}/messages?after={after}", History)
            messages += page.messages
            if page.next is None:
                return History(messages, page.cursor)
            after = page.next

    async def turn(self, session_id: UUID, turn_id: UUID) -> Turn:
        """Return a turn's state."""
        return await self._ask("GET", f"/v1/sessions/{session_id}/turns/{turn_id}", Turn)

    async def cancel(self, session_id: UUID, turn_id: UUID) -> None:
        """Ask for the turn's end; it arrives in the stream."""
        await self._ask("POST", f"/v1/sessions/{session_id}/turns/{turn_id}/cancel", dict[str, Any])

    async def waiting(self, session_id: UUID) -> list[ToolCall]:
        """Return the calls that the session's turns wait for."""
        return (await self._ask("GET", f"/v1/sessions/{session_id}/tool-calls", _ToolCalls)).tool_calls

    async def answer(self, session_id: UUID, call_id: str, *, yes: bool) -> None:
        """Say yes or no to a call. Raises RefusedError, status 409, when it was answered or has expired."""
        body = {"status": "ok" if yes else "declined", "content": ""}
        path = f"/v1/sessions/{session_id}/tool-calls/{quote(call_id, safe='')}/result"
        await self._ask("PUT", path, dict[str, Any], body)

    async def profile(self) -> Profile:
        """Return the person's profile or its defaults."""
        return await self._ask("GET", "/v1/me/profile", Profile)

    async def put_profile(self, profile: Profile) -> None:
        """Replace the profile."""
        await self._ask("PUT", "/v1/me/profile", Profile, profile)

    async def consent_texts(self) -> list[ConsentText]:
        """Return the texts the server asks to agree to, in every language."""
        return (await self._ask("GET", "/v1/consents", _ConsentTexts)).consents

    async def consents(self) -> list[Consent]:
        """Return what the person has said so far, for each purpose."""
        return (await self._ask("GET", "/v1/me/consents", _Consents)).consents

    async def give_consent(self, text: ConsentText) -> None:
        """Agree to a text."""
        body = {"version": text.version, "text_hash": text.sha256, "locale": text.locale}
        await self._ask("PUT", f"/v1/me/consents/{text.purpose}", Consent, body)

    async def daily(self, metric: str, start: str, end: str) -> list[Day]:
        """Return the days of a metric from `start` to `end` (ISO dates) that have data."""
        query = urlencode({"metric": metric, "start": start, "end": end})
        return (await self._ask("GET", f"/v1/health/daily?{query}", _Days)).days

    # --- the stream ---

    async def send(self, session_id: UUID, turn_id: UUID, text: str) -> AsyncGenerator[Item]:
        """Send a message and yield the turn's events to its end, through lost connections.

        Sending again under the same id is how a lost stream is taken up: the server knows the message and
        goes on after Last-Event-ID. Raises RefusedError, UnreachableError, TokenError.
        """
        path, body = f"/v1/sessions/{session_id}/turns/{turn_id}", {"content": text}
        cursor: str | None = None
        pauses, lost, renew = self._patience.pauses(), False, False
        while True:
            reason, wait = "the connection ended", 0.0
            try:
                async with self._request("PUT", path, body, cursor=cursor, renew=renew) as response:
                    if renew := response.status == 401 and not renew:
                        continue
                    if response.status in _PASSING:
                        reason, wait = f"it answers {response.status}", _retry_after(response)
                    else:
                        if lost:
                            yield Connection("back")
                            lost = False
                        pauses.reset()
                        parser = SseParser()
                        async with aclosing(_frames(response, parser)) as frames:
                            async for event_id, event in frames:
                                cursor = event_id or cursor
                                yield event
                                if events.ends_run(event):
                                    return
                        if parser.retry_ms is not None:
                            # Ended on purpose, such as with the token: no loss that anybody must hear of.
                            await asyncio.sleep(parser.retry_ms / 1000)
                            continue
            except _AWAY as error:
                reason = str(error) or type(error).__name__
            if not lost:
                lost = True
                yield Connection("lost", reason)
            await pauses.wait(self.url, reason, wait)

    # --- requests ---

    async def _ask(self, method: str, path: str, answer: type[T], body: object = None) -> T:
        pauses, renew = self._patience.pauses(), False
        while True:
            wait = 0.0
            try:
                async with self._request(method, path, body, renew=renew) as response:
                    content = await response.read()
                    if renew := response.status == 401 and not renew:
                        continue
                    if response.status < 300:
                        return _decode(content, answer)
                    if response.status not in _PASSING:
                        raise RefusedError(response.status, _problem(content))
                    reason, wait = f"it answers {response.status}", _retry_after(response)
            except _AWAY as error:
                reason = str(error) or type(error).__name__
            await pauses.wait(self.url, reason, wait)

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: object, *, cursor: str | None = "", renew: bool = False
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one request. `cursor`: "" asks for JSON; else for a stream, after it if it is not None."""
        headers = {"Authorization": f"Bearer {await self._tokens.token(renew=renew)}"}
        if cursor != "":
            headers["Accept"] = "text/event-stream"
        if cursor:
            headers["Last-Event-ID"] = cursor
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else msgspec.json.encode(body)
        self._sending()
        try:
            async with self._http.request(method, self.url + path, data=data, headers=headers) as response:
                yield response
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise UnreachableError(f"{self.url!r} is not an http address") from error


async def _frames(
    response: aiohttp.ClientResponse, parser: SseParser
) -> AsyncGenerator[tuple[str | None, Event]]:
    if response.status >= 300:
        raise RefusedError(response.status, _problem(await response.read()))
    async for chunk in response.content.iter_any():
        for frame in parser.feed(chunk):
            try:
                yield frame.id, events.decode(frame.data)
            except msgspec.DecodeError as error:
                raise aiohttp.ClientPayloadError("the stream holds something else than events") from error


def _decode(content: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=answer)
    except msgspec.DecodeError as error:
        raise RefusedError(
            200, Problem(detail="the answer is not the backend's; is the address right?")
        ) from (error)


def _problem(content: bytes) -> Problem:
    try:
        return msgspec.json.decode(content, type=Problem)
    except msgspec.DecodeError:
        return Problem(detail=content[:200].decode("utf-8", "replace"))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    try:
        return min(30.0, max(0.0, float(response.headers.get("Retry-After", ""))))
    except ValueError:
        return 0.0
