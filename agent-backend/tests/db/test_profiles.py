from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from agent_backend.db import profiles
from agent_backend.db.pool import Database
from agent_backend.db.profiles import Profile, ProfilePut
from agent_backend.errors import InvalidRequest

NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)


async def test_a_user_without_profile_has_the_defaults(database: Database) -> None:
    profile = await profiles.read(database, uuid4())
    assert profile == Profile(time_zone="UTC", locale="en", birth_year=None)


async def test_the_profile_written_last_is_read_and_is_the_users_own(database: Database) -> None:
    anna, ben = uuid4(), uuid4()
    first = Profile(time_zone="Europe/Berlin", locale="de-DE", birth_year=1985)
    second = Profile(time_zone="America/Argentina/Buenos_Aires", locale="zh-Hant-TW")
    for user, profile in ((anna, first), (ben, first), (anna, second)):
        await profiles.write(database, user, ProfilePut(**msgspec.structs.asdict(profile)), NOW)
    assert await profiles.read(database, anna) == second
    assert await profiles.read(database, ben) == first


WRONG: list[tuple[str, dict[str, Any]]] = [
    *(
        ("time_zone", {"time_zone": zone})
        for zone in (
            "Mars/Olympus",
            "europe/berlin",
            "Europe",
            "../etc/passwd",
            "/etc/localtime",
            "posix/Europe/Berlin",
            "localtime",
            "Factory",
            "CEST+3",
            "+02:00",
            "Europe/Berlin\n",
            " ",
        )
    ),
    *(("locale", {"locale": locale}) for locale in ("d", "de_DE", "de-", "de-DE\n", "1a", "de DE")),
    ("birth_year", {"birth_year": 2027}),
]


async def test_what_is_wrong_is_named_and_nothing_written(database: Database) -> None:
    user = uuid4()
    for field, change in WRONG:
        with pytest.raises(InvalidRequest) as refused:
            await profiles.write(database, user, ProfilePut(**change), NOW)
        assert [error.field for error in refused.value.errors] == [f"$.{field}"], change
    assert await profiles.read(database, user) == Profile()
