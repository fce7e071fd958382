"""How much one user and one address may do on this machine; docs/design/limits.md has the arithmetic.

Counted in process: a limit is per machine, so with N machines it is N times as much. What must hold across
machines (unfinished turns of a user) is counted in the database instead, by `accept_turn`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, TypeAlias
from uuid import UUID

from starlette.types import Scope

from agent_backend.errors import TooManyRequests
from agent_backend.settings import Settings
from agent_backend.telemetry import metrics
from agent_backend.web.buckets import Buckets, Rate

Limit: TypeAlias = Literal["reads", "writes", "turns", "uploads", "exports"]
"""The class of an operation: what it counts as, for its user."""
Rated: TypeAlias = Literal[Limit, "strangers", "auth_failures"]
"""What is a rate. A refusal may also name `streams`, `queue`, `concurrent_turns` and
`concurrent_requests`."""

RATES: dict[Rated, Rate] = {
    # Of one user.
    "reads": Rate(burst=300, interval=0.05),
    "writes": Rate(burst=120, interval=0.2),
    "turns": Rate(burst=60, interval=1.0),
    "uploads": Rate(burst=600, interval=0.25),
    "exports": Rate(burst=5, interval=600.0),
    # Of one address: tokens that have not been seen before, and those among them that are not valid.
    "strangers": Rate(burst=500, interval=0.02),
    "auth_failures": Rate(burst=30, interval=6.0),
}
STREAMS_PER_USER = 20
"""Sockets and event streams; one more, and the user's oldest is asked to come back."""
STREAMS_PER_ADDRESS = 1000
"""A mobile network hides thousands of phones behind one address."""
TURNS_PER_USER = 32
"""Unfinished turns over all sessions and machines; a session's queue alone may have 16."""

REQUESTS_PER_USER = 100
"""Being served at once, streams included; each holds a connection that nobody else can have."""

Cut: TypeAlias = Callable[[], None]
"""Ends a stream so that its client comes back with its cursor."""


class Limits:
    """One per process. Without a `factor` nothing is counted: development, where one user is many."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.factor = settings.limit_factor
        self._trusted = settings.trust_fly_client_ip
        self._clock = clock
        self._buckets: dict[str, Buckets] = {}
        self._serving: defaultdict[UUID, int] = defaultdict(int)
        self._of_user: defaultdict[UUID, dict[object, Cut]] = defaultdict(dict)
        self._of_address: defaultdict[str, int] = defaultdict(int)

    # --- rates ---

    def take(self, limit: Limit, user_id: UUID, cost: float = 1.0) -> None:
        """Count an operation of a user. Raises TooManyRequests."""
        if self.factor:
            buckets = self._named(limit)
            wait = buckets.take(user_id.bytes, self._clock(), cost)
            if wait:
                raise self._refusal(limit, wait, buckets.rate, "You are asking too often.")

    def begin(self, user_id: UUID) -> None:
        """Count a request that is being served from now on. Raises TooManyRequests: it is not counted."""
        if self.factor and self._serving.get(user_id, 0) >= scaled(REQUESTS_PER_USER, self.factor):
            metrics.limited["concurrent_requests"] += 1
            detail = "Too many of your requests are being served."
            raise TooManyRequests(detail, retry_after=1, limit="concurrent_requests")
        self._serving[user_id] += 1

    def end(self, user_id: UUID) -> None:
        """Count it no more."""
        self._serving[user_id] -= 1
        if not self._serving[user_id]:
            del self._serving[user_id]

    def meet(self, scope: Scope) -> None:
        """Count a token that is not known yet, before a signature is checked. Raises TooManyRequests."""
        if not self.factor:
            return
        address, now = self.address(scope).encode(), self._clock()
        failures, strangers = self._named("auth_failures"), self._named("strangers")
        detail = "Too many requests come from this address."
        wait = failures.wait(address, now)
        if wait:
            raise self._refusal("auth_failures", wait, failures.rate, detail)
        wait = strangers.take(address, now)
        if wait:
            raise self._refusal("strangers", wait, strangers.rate, detail)

    def mistrust(self, scope: Scope) -> None:
        """Count a token that somebody has made up against its address."""
        if self.factor:
            self._named("auth_failures").take(self.address(scope).encode(), self._clock())

    def _named(self, name: Rated) -> Buckets:
        buckets = self._buckets.get(name)
        if buckets is None:
            rate = RATES[name]
            scaled = Rate(self._scaled(rate.burst), rate.interval / self.factor)
            buckets = self._buckets[name] = Buckets(scaled)
        return buckets

    def _scaled(self, count: int) -> int:
        return scaled(count, self.factor)

    def _refusal(self, name: Rated, wait: float, rate: Rate, detail: str) -> TooManyRequests:
        metrics.limited[name] += 1
        return TooManyRequests(detail, retry_after=wait, limit=name, quota=(rate.burst, rate.window))

    # --- streams ---

    def admit_stream(self, scope: Scope) -> None:
        """Refuse a stream before it begins if its address has too many. Raises TooManyRequests."""
        if self.factor and self._of_address.get(self.address(scope), 0) >= self._scaled(STREAMS_PER_ADDRESS):
            metrics.limited["streams"] += 1
            detail = "Too many streams are open from this address."
            raise TooManyRequests(detail, retry_after=10, limit="streams")

    @contextmanager
    def stream(self, scope: Scope, user_id: UUID, cut: Cut) -> Generator[None]:
        """Count an open stream; beyond the user's number the oldest is cut.

        Not the newest: a phone that lost its network leaves sockets behind that nobody hears of for a minute,
        and it must not be refused for them.
        """
        key, address, mine = object(), self.address(scope), self._of_user[user_id]
        mine[key] = cut
        self._of_address[address] += 1
        try:
            while self.factor and len(mine) > self._scaled(STREAMS_PER_USER):
                metrics.limited["streams"] += 1
                mine.pop(next(iter(mine)))()
            yield
        finally:
            mine.pop(key, None)
            if not mine and self._of_user.get(user_id) is mine:
                del self._of_user[user_id]
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    # --- addresses ---

    def address(self, scope: Scope) -> str:
        """Return who sent a request: the peer, or whom Fly's proxy names; IPv6 by its /64."""
        client = scope.get("client")
        peer = client[0] if client else ""
        if self._trusted and is_private(peer):
            for name, value in scope["headers"]:
                if name == b"fly-client-ip":
                    return network_of(value.decode("latin-1")) or network_of(peer) or peer
        return network_of(peer) or peer


def scaled(count: int, factor: float) -> int:
    """Return a number of a limit; whatever the factor, one is allowed."""
    return max(1, round(count * factor))


def turns_per_user(settings: Settings) -> int | None:
    """Return how many unfinished turns a user may have; None: any number."""
    return scaled(TURNS_PER_USER, settings.limit_factor) if settings.limit_factor else None


@lru_cache(maxsize=1024)
def network_of(text: str) -> str | None:
    """Return what an address counts as: an IPv4 address, or the /64 that an IPv6 customer has; None: none."""
    address = _parsed(text)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return None if address is None else str(address)


@lru_cache(maxsize=1024)
def is_private(text: str) -> bool:
    """Say whether an address is not the internet's: Fly's proxy reaches machines from such ones only."""
    address = _parsed(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_private


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    if len(text) > 64:
        return None
    try:
        return ip_address(text.partition("%")[0].strip())
    except ValueError:
        return None
