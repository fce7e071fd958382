"""What a user told us about themselves: time zone, language, year of birth, and what protects them."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from typing import Annotated, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent_backend.db import goals
from agent_backend.db.pool import Database, queries
from agent_backend.errors import FieldError, InvalidRequest
from agent_backend.guardrails import guardrails, is_minor

_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
"""Leaves out the folders `posix/` and `right/` and the file `localtime`, which no other machine knows."""
_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}")


class _Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every PUT replaces."""

    time_zone: Annotated[str, Meta(min_length=1, max_length=64, description="IANA name")] = "UTC"
    locale: Annotated[str, Meta(min_length=2, max_length=35, description="BCP 47 tag, such as de-DE")] = "en"
    birth_year: Annotated[int, Meta(ge=1900, le=2100)] | None = None


_Height: TypeAlias = Annotated[float, Meta(ge=100, le=250, description="Centimetres")]


class Profile(_Told, frozen=True, kw_only=True):
    """A user's profile; the defaults hold until the first PUT."""

    eating_disorder: bool = False
    """No weight and energy: no such goals, and no such figures for the coach."""
    height_cm: _Height | None = None


class ProfilePut(_Told, frozen=True, kw_only=True):
    """A profile as it is written. An app that does not know of the fields below must not undo them.

    So what is left out of these two stays as it is.
    """

    eating_disorder: bool | UnsetType = UNSET
    height_cm: _Height | UnsetType | None = UNSET

    @property
    def tells_of_health(self) -> bool:
        """Whether it says something of the user's body, and not only where and how old the user is."""
        return self.eating_disorder is True or isinstance(self.height_cm, float)


async def read(db: Database, user_id: UUID) -> Profile:
    """Return the user's profile, or the defaults."""
    row = await db.fetchrow(queries("profiles")["read"], user_id)
    return Profile() if row is None else Profile(**row)


async def write(db: Database, user_id: UUID, profile: ProfilePut, now: dt.datetime) -> Profile:
    """Store the profile and return it. Daily figures of the old time zone are computed anew when next read.

    Goals that the profile now forbids go in the same transaction. Raises InvalidRequest for a time zone that
    Python or Postgres does not know, a malformed locale, or a birth year in the future.
    """
    if _LOCALE.fullmatch(profile.locale) is None:
        raise _invalid("locale", "is not a BCP 47 tag such as de-DE")
    if profile.birth_year is not None and profile.birth_year > now.year:
        raise _invalid("birth_year", "is in the future")
    if not _python_knows(profile.time_zone) or not await _postgres_knows(db, profile.time_zone):
        raise _invalid("time_zone", "is not an IANA time zone such as Europe/Berlin")
    flag, height = profile.eating_disorder, profile.height_cm
    async with db.as_user(user_id) as connection:
        await connection.execute(queries("profiles")["lock_goals"], user_id)
        row = await connection.fetchrow(
            queries("profiles")["write"],
            *(user_id, profile.time_zone, profile.locale, profile.birth_year),
            None if flag is UNSET else flag,
            height is not UNSET,
            None if height is UNSET else height,
        )
        assert row is not None, "the statement returns the row"
        stored = Profile(**row)
        minor = is_minor(stored.birth_year, now.date())
        forbidden = guardrails().kinds(withheld=stored.eating_disorder, adults_only=minor)
        if forbidden:
            await goals.remove_kinds(connection, user_id, forbidden)
    return stored


def _python_knows(name: str) -> bool:
    if _ZONE.fullmatch(name) is None or name == "Factory":
        return False
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        return False
    return True


async def _postgres_knows(db: Database, name: str) -> bool:
    try:
        await db.fetchval(queries("profiles")["knows_time_zone"], name)
    except asyncpg.InvalidParameterValueError:
        return False
    return True


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"$.{field}: {reason}", errors=(FieldError(f"$.{field}", reason),))
