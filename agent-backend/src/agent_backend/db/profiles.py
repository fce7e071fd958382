"""What a user told us about themselves: time zone, language, year of birth."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from typing import Annotated
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Meta

from agent_backend.db.pool import Database, queries
from agent_backend.errors import FieldError, InvalidRequest

_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
"""Leaves out the folders `posix/` and `right/` and the file `localtime`, which no other machine knows."""
_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4}")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user's profile; the defaults hold until the first PUT."""

    time_zone: Annotated[str, Meta(min_length=1, max_length=64, description="IANA name")] = "UTC"
    locale: Annotated[str, Meta(min_length=2, max_length=35, description="BCP 47 tag, such as de-DE")] = "en"
    birth_year: Annotated[int, Meta(ge=1900, le=2100)] | None = None


async def read(db: Database, user_id: UUID) -> Profile:
    """Return the user's profile, or the defaults."""
    row = await db.fetchrow(queries("profiles")["read"], user_id)
    return Profile() if row is None else Profile(**row)


async def write(db: Database, user_id: UUID, profile: Profile, now: dt.datetime) -> None:
    """Store the profile. Daily figures of the old time zone are computed anew when next read.

    Raises InvalidRequest for a time zone that Python or Postgres does not know, a malformed locale, or a
    birth year in the future.
    """
    if _LOCALE.fullmatch(profile.locale) is None:
        raise _invalid("locale", "is not a BCP 47 tag such as de-DE")
    if profile.birth_year is not None and profile.birth_year > now.year:
        raise _invalid("birth_year", "is in the future")
    if not _python_knows(profile.time_zone) or not await _postgres_knows(db, profile.time_zone):
        raise _invalid("time_zone", "is not an IANA time zone such as Europe/Berlin")
    async with db.as_user(user_id) as connection:
        await connection.execute(
            queries("profiles")["write"], user_id, profile.time_zone, profile.locale, profile.birth_year
        )


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
