"""A bounded load against a deployed server: many conversations at once, measured as a client sees them.

Bounded three ways (clients, turns, seconds), because each turn of a real deployment costs money. The server's
own limits and budgets hold for it as for anybody: turns refused with 429 are counted apart, as no failures.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from myhealth_cli.client import Client, Patience, RefusedError
from myhealth_cli.deploy import report
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.errors import GateError, NothingChangedError
from myhealth_cli.deploy.ground import RECORDS
from myhealth_cli.deploy.probe import LOOPBACK, Answer, Patiences, Probe, ask, canary, encrypted, prepare
from myhealth_cli.errors import MyHealthError
from myhealth_cli.tokens import TokenError, tokens_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from myhealth_cli.tokens import TokenSource

_QUESTION: Final = "This is a load test. Answer with one short sentence."
_ANSWER_S: Final = 180.0
RESULTS: Final = "load.jsonl"


class Bounds(msgspec.Struct, frozen=True):
    """At most so many conversations at once, turns in all, and seconds in which turns begin."""

    clients: int
    turns: int
    seconds: float
    ready_s: float = 30.0
    """How long the server may take to be there at all."""


class Quantiles(msgspec.Struct, frozen=True):
    """Of a duration, in seconds."""

    p50: float
    p95: float
    p99: float
    max: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. `refused`: turns the server's own limits said no to."""

    url: str
    at: str
    release: str
    clients: int
    turns: int
    answered: int
    refused: int
    failed: dict[str, int]
    reconnects: int
    seconds: float
    first_word: Quantiles | None
    answer: Quantiles | None


def run(url: str, bounds: Bounds, *, token: str | None, yes: bool, as_json: bool) -> int:
    """Put the load on and print what was measured. Raises NothingChangedError."""
    if not _is_address(url):
        raise NothingChangedError(
            "that is no server's address", hint=f"such as {deployed('staging').url}, without a path"
        )
    encrypted(url, "the address")
    if not yes:
        _ours(url)
    result = asyncio.run(measure(url, bounds, _tokens(url, token)))
    if RECORDS.parent.parent.joinpath("agent-backend").is_dir():
        _keep(result)
    if as_json:
        report.show_json(result)
    else:
        sys.stdout.write(words(result))
    return 0 if result.answered + result.refused == result.turns and result.answered else 1


def _ours(url: str) -> None:
    """Raise NothingChangedError unless this is a server on this machine, or staging."""
    host = urlsplit(url).hostname or ""
    if host.rstrip(".") == urlsplit(deployed("production").url).hostname:
        raise NothingChangedError(
            "this is production: real users share it, and each turn costs money",
            hint="use staging, or say --yes",
        )
    if host not in {*LOOPBACK, urlsplit(deployed("staging").url).hostname}:
        raise NothingChangedError(
            f"{host or url} is none of our addresses: it would get a user's token, and a load",
            hint="correct it, or say --yes if it is yours",
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        more = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not more
    except ValueError:
        return False


def _tokens(url: str, token: str | None) -> TokenSource:
    local = urlsplit(url).hostname in LOOPBACK
    if token or (local and "CANARY_EMAIL" not in os.environ):
        return tokens_for(url, token, "load")
    return canary(os.environ)


def _keep(result: Result) -> None:
    """Keep the result for people and for `doctor`."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    with (RECORDS / RESULTS).open("ab") as file:
        file.write(msgspec.json.encode(result) + b"\n")


def last(folder: Path) -> Result | None:
    """Return the newest result kept in a checkout; None: there is none that can be read."""
    try:
        lines = (folder / RECORDS / RESULTS).read_bytes().splitlines()
        return msgspec.json.decode(lines[-1], type=Result)
    except (OSError, IndexError, msgspec.DecodeError):
        return None


async def measure(url: str, bounds: Bounds, tokens: TokenSource) -> Result:
    """Put a load on a server. Raises NothingChangedError when it is not there or lets nobody in."""
    patience = Patience(total_s=30)
    try:
        async with Probe(url, Patiences(ready_s=bounds.ready_s)) as probe:
            await probe.ready()
            version = await probe.version()
        async with Client(url, tokens, patience) as client:
            await _let_in(client)
            began = time.monotonic()
            crowd = _Crowd(client, bounds, began)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(bounds.clients, bounds.turns)):
                    group.create_task(crowd.converse())
    except (GateError, TokenError) as error:
        hint = "Is the address right, and a server there? `myhealth status` shows a deployed one"
        raise NothingChangedError(str(error), hint=error.hint or hint) from error
    return Result(
        url=url,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        release=version.release,
        clients=bounds.clients,
        turns=crowd.begun,
        answered=len(crowd.answers),
        refused=crowd.refused,
        failed=dict(crowd.failed),
        reconnects=sum(each.reconnects for each in crowd.answers),
        seconds=round(time.monotonic() - began, 3),
        first_word=quantiles([each.first_word_s for each in crowd.answers]),
        answer=quantiles([each.total_s for each in crowd.answers]),
    )


async def _let_in(client: Client) -> None:
    """Give what the server asks for before the first turn. Raises NothingChangedError: it lets nobody in."""
    try:
        await prepare(client)
    except RefusedError as error:
        if error.status not in {401, 403}:
            raise
        raise NothingChangedError(
            str(error),
            hint="take SUPABASE_URL and CANARY_* of this server's environment, or --token",
        ) from error


class _Crowd:
    """Conversations that take turns from one account of them."""

    def __init__(self, client: Client, bounds: Bounds, began: float) -> None:
        self._client = client
        self._bounds = bounds
        self._ends = began + bounds.seconds
        self.begun = 0
        self.refused = 0
        self.answers: list[Answer] = []
        self.failed: Counter[str] = Counter()

    async def converse(self) -> None:
        """Ask until a bound is reached."""
        while self.begun < self._bounds.turns and time.monotonic() < self._ends:
            self.begun += 1
            try:
                async with asyncio.timeout(_ANSWER_S):
                    self.answers.append(await ask(self._client, _QUESTION))
            except TimeoutError:
                self.failed[f"no answer within {_ANSWER_S:g} s"] += 1
            except RefusedError as error:
                if error.status == 429:
                    self.refused += 1
                else:
                    self.failed[f"{error.status} {error.problem.code}".strip()] += 1
            except MyHealthError as error:
                self.failed[str(error)[:120]] += 1


def quantiles(values: Sequence[float]) -> Quantiles | None:
    """Return the nearest-rank quantiles; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3)

    return Quantiles(at(0.5), at(0.95), at(0.99), round(ordered[-1], 3))


def words(result: Result) -> str:
    """Write a result for the terminal."""
    lines = [
        f"{result.url}, release {result.release}",
        f"  {result.turns} turns by {result.clients} clients in {result.seconds:.1f} s",
        f"  answered {result.answered}, refused by the server's limits {result.refused}",
        f"  failed {sum(result.failed.values())}, reconnects {result.reconnects}",
    ]
    for name, found in (("first word", result.first_word), ("whole answer", result.answer)):
        if found is not None:
            lines.append(
                f"  {name}: p50 {found.p50:.2f} s, p95 {found.p95:.2f} s, "
                f"p99 {found.p99:.2f} s, max {found.max:.2f} s"
            )
    lines += [f"  {count} x {reason}" for reason, count in result.failed.items()]
    return "\n".join(lines) + "\n"
