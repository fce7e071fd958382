"""What handlers work with; `app.py` puts it together and every request carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent_backend.agents import Agent
from agent_backend.auth import Authenticator
from agent_backend.db.pool import Database
from agent_backend.settings import Settings
from agent_backend.turns.machine import Machine


@dataclass(slots=True, kw_only=True)
class Services:
    """One per process."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    machine: Machine
    agents: Mapping[str, Agent]
    """By name."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    draining: bool = False
    """Readiness is off: finish what runs, take what still comes, end soon."""
