"""The gates: what a server says of itself on each machine, and an answer that the canary user really gets."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import msgspec

from myhealth_cli import events
from myhealth_cli.client import (
    Client,
    Connection,
    Item,
    Patience,
    Profile,
    RefusedError,
    UnreachableError,
)
from myhealth_cli.consent import missing
from myhealth_cli.deploy.errors import GateError, NothingChangedError
from myhealth_cli.errors import MyHealthError
from myhealth_cli.tokens import Issuer, SignedIn, TokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from myhealth_cli.tokens import TokenSource

T = TypeVar("T")

_TO_MACHINE: Final = "fly-force-instance-id"
_PAUSE_S: Final = 0.5
_QUESTION: Final = "This is a check after a deploy. Answer with one short sentence."
_BIRTH_YEAR: Final = 1980
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
CANARY: Final = ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY", "CANARY_EMAIL", "CANARY_PASSWORD")


class Patiences(msgspec.Struct, frozen=True, kw_only=True):
    """How long each gate waits, in seconds, before it says no."""

    ready_s: float = 60.0
    first_word_s: float = 20.0
    answer_s: float = 90.0


class Version(msgspec.Struct, frozen=True):
    """What /version answers."""

    release: str
    environment: str = ""
    machine: str = ""
    started_at: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as the canary saw it."""

    first_word_s: float
    total_s: float
    characters: int
    reconnects: int


def encrypted(url: str, what: str) -> None:
    """Raise NothingChangedError where a token or a password would cross a network in plain text."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise NothingChangedError(
            f"{what} {url} is not https", hint="what is sent there is secret: say https://"
        )


def canary(env: Mapping[str, str]) -> TokenSource:
    """Return the canary user's session with Supabase Auth. Raises NothingChangedError: variables missing."""
    absent = [name for name in CANARY if not env.get(name, "").strip()]
    if absent:
        raise NothingChangedError(
            f"the canary user is unknown: {', '.join(absent)} not set",
            hint="make one in Supabase (docs/runbooks/deploy.md) and set these variables",
        )
    url, key, email, password = (env[name].strip() for name in CANARY)
    encrypted(url, "SUPABASE_URL")
    return SignedIn(Issuer(url.rstrip("/"), key), email, password=password, sign_up=False)


class Probe:
    """Asks the machines of one address. An async context manager."""

    def __init__(self, url: str, patiences: Patiences | None = None) -> None:
        self.url = url.rstrip("/")
        self.patiences = patiences or Patiences()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=15, sock_connect=5)
        self._http = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def ready(self, machine: str | None = None) -> None:
        """Wait until a machine is ready. Raises GateError with what it said last."""
        await self._until("/readyz", machine, lambda _: None)

    async def version(self, machine: str | None = None) -> Version:
        """Return what a machine says it is. Raises GateError."""
        return await self._until("/version", machine, lambda body: msgspec.json.decode(body, type=Version))

    async def machines(self, ids: Iterable[str], release: str | None) -> list[Version]:
        """Probe every machine by itself. Raises GateError: one is not ready, or not the release."""
        found: list[Version] = []
        for each in ids:
            await self.ready(each)
            version = await self.version(each)
            if version.machine and version.machine != each:
                raise GateError(f"asked for machine {each}, machine {version.machine} answered")
            found.append(version)
        releases = sorted({each.release for each in found})
        if release is not None and releases not in ([], [release]):
            raise GateError(f"release {', '.join(releases)} answers instead of {release}")
        if len(releases) > 1:
            raise GateError(f"the machines are different releases: {', '.join(releases)}")
        return found

    async def once(self, path: str, machine: str | None = None) -> str:
        """Ask once; return what is wrong, or nothing."""
        try:
            status, body = await self._get(path, machine)
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__
        return "" if status == 200 else _said(status, body)

    async def _until(self, path: str, machine: str | None, read: Callable[[bytes], T]) -> T:
        ends, reason = time.monotonic() + self.patiences.ready_s, "nothing"
        while True:
            try:
                status, body = await self._get(path, machine)
                if status == 200:
                    return read(body)
                reason = _said(status, body)
            except msgspec.DecodeError:
                reason = "an answer that is not the backend's"
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() > ends:
                where = f"machine {machine}" if machine else self.url
                raise GateError(f"{where}: {path} is not good after {self.patiences.ready_s:g} s: {reason}")
            await asyncio.sleep(_PAUSE_S)

    async def _get(self, path: str, machine: str | None) -> tuple[int, bytes]:
        headers = {_TO_MACHINE: machine} if machine else {}
        async with self._http.get(self.url + path, headers=headers, allow_redirects=False) as response:
            return response.status, await response.read()

    async def ask(self, tokens: TokenSource) -> Answer:
        """Have the canary user ask a question, and read the whole answer. Raises GateError."""
        try:
            async with asyncio.timeout(self.patiences.answer_s):
                async with Client(self.url, tokens, Patience(total_s=self.patiences.ready_s)) as client:
                    await prepare(client)
                    return await ask(client, first_word_s=self.patiences.first_word_s)
        except TimeoutError as error:
            raise GateError(f"the canary's answer took more than {self.patiences.answer_s:g} s") from error
        except (TokenError, UnreachableError) as error:
            raise GateError(f"the canary cannot ask: {error}") from error
        except GateError:
            raise
        except MyHealthError as error:
            unknown = isinstance(error, RefusedError) and error.status == 401
            rest = "; are SUPABASE_URL and CANARY_* this environment's?" if unknown else ""
            raise GateError(f"the canary is refused: {error}{rest}") from error


def _said(status: int, body: bytes) -> str:
    return f"{status} {body[:160].decode('utf-8', 'replace')}".strip()


async def prepare(client: Client) -> None:
    """Give the consents and the year of birth without which the server answers nobody."""
    profile = await client.profile()
    if profile.birth_year is None:
        await client.put_profile(Profile(profile.time_zone, profile.locale, _BIRTH_YEAR))
    for text in await missing(client):
        await client.give_consent(text)


class _Heard:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.first: float | None = None
        """When the first word came, on the monotonic clock."""
        self.characters = 0
        self.reconnects = 0
        self.end: events.RunError | events.RunFinished | None = None

    def take(self, item: Item) -> None:
        match item:
            case events.TextContent():
                self.first = self.first or time.monotonic()
                self.characters += len(item.delta)
            case Connection(state="lost"):
                self.reconnects += 1
            case events.RunError() | events.RunFinished():
                self.end = item
            case _:
                pass


async def ask(client: Client, text: str = _QUESTION, *, first_word_s: float | None = None) -> Answer:
    """Ask in a session of its own. Raises GateError: no words, too late, an error; and what Client raises."""
    session, heard = uuid4(), _Heard()
    await client.put_session(session)
    began = time.monotonic()
    # Also of a stream that says nothing at all.
    until = asyncio.timeout(first_word_s)
    try:
        async with until, aclosing(client.send(session, uuid4(), text)) as items:
            async for item in items:
                heard.take(item)
                if heard.first or heard.end:
                    until.reschedule(None)
    except TimeoutError as error:
        if not until.expired():
            raise
        raise GateError(f"the canary's first word took more than {first_word_s:g} s") from error
    match heard.end:
        case events.RunError() as end:
            raise GateError(f"the canary's turn failed: {end.code or end.message}")
        case events.RunFinished(outcome=outcome) if outcome and outcome.type != "success":
            raise GateError(f"the canary's turn ended as {outcome.type}")
        case _:
            pass
    if heard.end is None or heard.first is None or not heard.characters:
        raise GateError("the canary's turn ended without a word")
    return Answer(
        first_word_s=heard.first - began,
        total_s=time.monotonic() - began,
        characters=heard.characters,
        reconnects=heard.reconnects,
    )
