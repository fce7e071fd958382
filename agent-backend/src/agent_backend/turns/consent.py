"""No model call and no tool without the user's consent: the check right before each, and the way to withdraw.

Accepting a turn looks at the consents too, in its own call. It is not enough: a turn may wait in a queue or
for a phone, and be begun by another machine, long after it was accepted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from agent_backend.consents import PURPOSES, REQUIRED, Catalogue, Guarded, Purpose
from agent_backend.db import consents
from agent_backend.db.pool import Database
from agent_backend.errors import ConsentRequired, MissingConsent
from agent_backend.telemetry import Log
from agent_backend.turns.committer import CONNECTION_TROUBLE
from agent_backend.turns.words import FixedWords

_log = Log("consent")

NOTICE = "consent_required"
_TEXTS = {
    "de": (
        "Dazu fehlt mir eine Einwilligung von dir, oder du hast sie widerrufen. Du kannst sie in der App "
        "unter „Datenschutz > Einwilligungen“ geben."
    ),
    "en": (
        "I do not have your consent for this, or you have withdrawn it. You can give it in the app under "
        '"Privacy > Consents".'
    ),
}

GOOD_SECONDS = 1.0
"""What was asked so long ago at most still holds: steps that follow one another ask once."""
WITHDRAWAL_SECONDS = 6.0
"""How long a withdrawal waits for turns to stop: more than GOOD_SECONDS, and than the time between sweeps."""
_KEEP_USERS = 10_000
_PAUSES = (0.05, 0.2, 1.0)
_LOOK_SECONDS = 0.02
_LONGEST_LOOK_SECONDS = 0.25


class Consents:
    """Tells whether something may be done for a user. `given` consents are remembered for a second."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._catalogue = catalogue
        self._given: dict[UUID, dict[Purpose, float]] = {}

    def required(self, guarded: Guarded) -> str:
        """Return what the database is asked with; see `Catalogue.required`."""
        return self._catalogue.required(guarded)

    def error(self, missing: list[str]) -> ConsentRequired:
        """Return the refusal that names the missing purposes and the versions to agree to."""
        return ConsentRequired(
            "This needs a consent that the user has not given, or has withdrawn.",
            missing=tuple(
                MissingConsent(purpose, self._catalogue.current_version(purpose))
                for purpose in PURPOSES
                if purpose in missing
            ),
        )

    async def require(self, user_id: UUID, guarded: Guarded) -> None:
        """Raise ConsentRequired unless the user has consented to what `guarded` needs."""
        if missing := await self.missing(user_id, guarded):
            raise self.error(missing)

    async def missing(self, user_id: UUID, guarded: Guarded) -> list[str]:
        """Return the purposes that are missing at this moment; asks the database once a second at most."""
        while not self._fresh(user_id, guarded):
            asked = time.monotonic()
            missing = await self._ask(user_id, guarded)
            if missing:
                return missing
            # An answer that came too late, because this process stood still, is asked for again.
            self.note_given(user_id, guarded, asked)
        return []

    async def _ask(self, user_id: UUID, guarded: Guarded) -> list[str]:
        for pause in _PAUSES:
            try:
                return await consents.missing(self._database, user_id, self.required(guarded))
            except CONNECTION_TROUBLE as error:
                _log.warning("consents_retry", error=error)
                await asyncio.sleep(pause)
        return await consents.missing(self._database, user_id, self.required(guarded))

    def _fresh(self, user_id: UUID, guarded: Guarded) -> bool:
        given = self._given.get(user_id, {})
        oldest = time.monotonic() - GOOD_SECONDS
        return all(given.get(purpose, float("-inf")) > oldest for purpose in REQUIRED[guarded])

    def note_given(self, user_id: UUID, guarded: Guarded, asked: float) -> None:
        """Remember that the database, asked at `asked` on the monotonic clock, missed nothing."""
        if len(self._given) >= _KEEP_USERS:
            self._given.clear()
        self._given.setdefault(user_id, {}).update(dict.fromkeys(REQUIRED[guarded], asked))

    def forget(self, user_id: UUID) -> None:
        """Ask anew next time."""
        self._given.pop(user_id, None)

    async def until_stopped(self, user_id: UUID, tell: Callable[[], Awaitable[None]]) -> None:
        """Wait until no living machine runs a turn of this user any more that was asked to stop.

        `tell` tells the owners once more: one that took up a turn a moment ago has missed the first time. A
        machine that has not heard of it for WITHDRAWAL_SECONDS is not waited for: its own look, before its
        next model call, is younger than that.
        """
        deadline = time.monotonic() + WITHDRAWAL_SECONDS
        pause = _LOOK_SECONDS
        while await consents.stopping_turns(self._database, user_id):
            if time.monotonic() > deadline:
                _log.warning("withdrawal_not_heard")
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)
            await tell()


def words(locale: str) -> FixedWords:
    """Return what a turn ends with that lacks a consent."""
    return FixedWords(NOTICE, _TEXTS["de" if locale.lower().startswith("de") else "en"])
