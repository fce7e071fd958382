"""Users who agree, in the database and over HTTP: without that nothing runs."""

from __future__ import annotations

from uuid import UUID

import aiohttp

from agent_backend.consents import Catalogue
from agent_backend.db import consents
from agent_backend.db.pool import Database


async def give_consents(database: Database, user: UUID, catalogue: Catalogue) -> None:
    """Let a user agree to everything that is asked for."""
    for text in catalogue.current():
        await consents.give(
            database,
            user,
            text.purpose,
            version=text.version,
            text_hash=bytes.fromhex(text.sha256),
            locale=text.locale,
            client=None,
        )


async def agree(http: aiohttp.ClientSession, **headers: str) -> None:
    """Give every consent that is asked for; the session has the server as its base."""
    async with http.get("/v1/consents", headers=headers) as response:
        texts = (await response.json())["consents"]
    for text in texts:
        body = {"version": text["version"], "text_hash": text["sha256"], "locale": text["locale"]}
        async with http.put(f"/v1/me/consents/{text['purpose']}", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
