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
from agent_backend.turns import age
from agent_backend.turns.turn import Situation

_KEEP_SECONDS = 30.0
_KEEP_USERS = 10_000


class SituationReader:
    """Reads profiles, remembering them for half a minute."""

    def __init__(self, database: Database, *, require_birth_year: bool = False) -> None:
        self._database = database
        self._require_birth_year = require_birth_year
        self._cache: dict[UUID, tuple[float, profiles.Profile]] = {}

    async def __call__(self, user_id: UUID) -> Situation:
        """Return the user's situation at this moment."""
        profile, refused = await self._judged(user_id)
        now = dt.datetime.now(ZoneInfo(profile.time_zone))
        text = (
            f"Today is {now:%A}, {now:%Y-%m-%d}, {now:%H:%M} in the user's time zone {profile.time_zone}. "
            f"The user's locale is {profile.locale}." + age.told(profile, now)
        )
        words = None if refused is None else age.words(refused, profile.locale)
        return Situation(profile.time_zone, profile.locale, text, words)

    async def admit(self, user_id: UUID) -> None:
        """Raise Forbidden (`turns/age.py`) for a user who gets no answer; one query at most."""
        _, refused = await self._judged(user_id)
        if refused is not None:
            raise refused

    def forget(self, user_id: UUID) -> None:
        """Drop what is remembered of a user: the profile has just changed, or is gone."""
        self._cache.pop(user_id, None)

    async def _judged(self, user_id: UUID) -> tuple[profiles.Profile, age.AgeRequired | age.TooYoung | None]:
        profile = await self._profile(user_id)
        refused = age.refusal(profile, dt.datetime.now(dt.UTC), required=self._require_birth_year)
        if refused is not None:
            # Nobody who has just told their age, maybe to another machine, waits for half a minute.
            self.forget(user_id)
        return profile, refused

    async def _profile(self, user_id: UUID) -> profiles.Profile:
        kept = self._cache.get(user_id)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        profile = await profiles.read(self._database, user_id)
        if len(self._cache) >= _KEEP_USERS:
            self._cache.clear()
        self._cache[user_id] = (time.monotonic() + _KEEP_SECONDS, profile)
        return profile
