"""What the model is told of now: date, time and place of the user, as a message of the conversation.

It goes into a message and not into the system prompt: a prompt that changes would empty the provider's cache.
"""

from __future__ import annotations

import datetime as dt
import time
from uuid import UUID
from zoneinfo import ZoneInfo

from agent_backend.db import profiles
from agent_backend.db.pool import Database
from agent_backend.turns.turn import Situation

_KEEP_SECONDS = 30.0
_KEEP_USERS = 10_000


class SituationReader:
    """Reads profiles, remembering them for half a minute."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[UUID, tuple[float, profiles.Profile]] = {}

    async def __call__(self, user_id: UUID) -> Situation:
        """Return the user's situation at this moment."""
        profile = await self._profile(user_id)
        now = dt.datetime.now(ZoneInfo(profile.time_zone))
        text = (
            f"Today is {now:%A}, {now:%Y-%m-%d}, {now:%H:%M} in the user's time zone {profile.time_zone}. "
            f"The user's locale is {profile.locale}."
        )
        return Situation(profile.time_zone, profile.locale, text)

    async def _profile(self, user_id: UUID) -> profiles.Profile:
        kept = self._cache.get(user_id)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        profile = await profiles.read(self._database, user_id)
        if len(self._cache) >= _KEEP_USERS:
            self._cache.clear()
        self._cache[user_id] = (time.monotonic() + _KEEP_SECONDS, profile)
        return profile
