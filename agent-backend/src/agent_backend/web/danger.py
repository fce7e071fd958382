"""A message that is refused (no consent, no budget, too many turns, database away) and shows a red flag.

Nothing of it is stored and no turn begins, but its sender may be in danger: the problem document carries the
fixed text as its member `safety`, and clients show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

import asyncpg

from agent_backend.db import profiles
from agent_backend.errors import RequestError
from agent_backend.telemetry import Log
from agent_backend.turns import safety
from agent_backend.web.services import Services

_log = Log("safety")

_TROUBLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What reading the locale may meet: the text goes out all the same."""
_LANGUAGE = re.compile(r"\s*([A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8}){0,4})\s*(?:[,;]|$)")


async def danger(
    services: Services,
    user_id: UUID,
    text: str,
    refusal: RequestError,
    header: Callable[[bytes], str | None],
) -> tuple[str, str] | None:
    """Return category and fixed text of a refused message's red flag, in the user's language."""
    given = _LANGUAGE.match(header(b"accept-language") or "")
    locale = given[1] if given else "en"
    if await safety.flag_in(text, locale) is None:
        return None
    if refusal.status < 500:  # else the database may be what is away, and nobody waits for it twice
        try:
            locale = (await profiles.read(services.database, user_id)).locale
        except _TROUBLE as error:
            _log.warning("locale_unknown", error=error)
    flag = await safety.flag_in(text, locale)
    assert flag is not None, "a locale changes the text only"
    safety.note(flag)
    return flag.category, flag.text
