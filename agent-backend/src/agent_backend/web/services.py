"""What handlers work with; `app.py` puts it together and every request carries it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from agent_backend.agents import Agent
from agent_backend.auth import Authenticator
from agent_backend.consents import Catalogue
from agent_backend.db.pool import Database
from agent_backend.settings import Settings
from agent_backend.turns.machine import Machine
from agent_backend.web.limits import Limits
from agent_backend.web.requests import Room

_BODIES_BYTES = 32 * 1024 * 1024
"""Decoded, a body is several times as large, and a machine has 512 MB."""


@dataclass(slots=True, kw_only=True)
class Services:
    """One per process."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    machine: Machine
    agents: Mapping[str, Agent]
    """By name."""
    consents: Catalogue
    limits: Limits = field(init=False)
    """What users and addresses may do here."""
    room: Room = field(init=False)
    """What bodies may take of the memory together."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    exporting: set[UUID] = field(default_factory=set[UUID])
    """Users whose archive is being made or sent."""
    checking: asyncio.Task[None] | None = None
    """The database being looked at for /readyz."""
    ready_at: float = float("-inf")
    """When it was last found ready, on the monotonic clock."""
    serving: int = 0
    """Requests and streams of users being served. Health checks and strangers keep nobody awake."""
    last_used: float = field(default_factory=time.monotonic)
    """When a user's request last began or ended, on the monotonic clock."""
    used: bool = False
    """Whether a user has been served since the boot or the last wake."""
    suspending: asyncio.Event | None = None
    """Set when a suspend that was asked for is over: what comes meanwhile would be frozen half done."""
    draining: bool = False
    """Readiness is off: finish what runs, take what still comes, end soon."""
    dozing: bool = False
    """Readiness is off because nobody is here; the next request of a user brings it back."""

    def __post_init__(self) -> None:
        self.limits = Limits(self.settings)
        self.room = Room(max(_BODIES_BYTES, self.settings.max_body_bytes))

    async def begin(self) -> None:
        """Note that a user is being served: the server stays awake, or wakes up."""
        self.serving += 1
        self.used = True
        self.last_used = time.monotonic()
        self.dozing = False
        if self.suspending is not None:
            await self.suspending.wait()
        if self.machine.resting:
            await self.machine.wake("request")

    def end(self) -> None:
        """Note that a user has been served."""
        self.serving -= 1
        self.last_used = time.monotonic()
