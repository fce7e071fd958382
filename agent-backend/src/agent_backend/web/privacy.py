"""The asking user's own data: all of it as an archive, and its end."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_backend.db import erasures
from agent_backend.errors import TooManyRequests
from agent_backend.web.operations import Call, operation, reply

if TYPE_CHECKING:
    from agent_backend.db.export import Export
    from agent_backend.web.services import Services

MAX_EXPORTS = 2
"""Archives that one server makes or sends at once."""

_STALLED_SECONDS = 60.0
"""A reader that takes not a byte for so long is gone."""
_AGAIN_SECONDS = 30.0


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt, without anything that says whose: `rows` deleted by table, and what became of the account.

    `status` is `erased` when nothing is left; `erasing` when it is being gone on with (`account` pending: the
    token issuer does not answer). Asking again answers the same receipt, as it stands then.
    """

    receipt: UUID
    status: Literal["erased", "erasing"]
    requested_at: dt.datetime
    completed_at: dt.datetime | None
    rows: dict[str, int]
    account: erasures.Account


class ArchiveResponse(Response):
    """Sends an archive as it is made, at the reader's speed, until it ends or the reader goes away."""

    def __init__(self, export: Export, services: Services, user_id: UUID) -> None:
        super().__init__(None, 200, archive_headers(export.created_at))
        # A stream has no length; Starlette has noted an empty body's.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._export = export
        self._services = services
        self._user_id = user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send it. Whatever breaks it breaks the connection: a reader must not take a part for the whole."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            try:
                await asyncio.gather(sending, leaving, return_exceptions=True)
                await self._export.close()
            finally:
                # Whatever breaks the end as well: a place that is kept is kept until the next boot.
                self._services.exporting.discard(self._user_id)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self._export.chunks():
            async with asyncio.timeout(_STALLED_SECONDS):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        # Whoever has the end may ask again at once.
        self._services.exporting.discard(self._user_id)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def archive_headers(created_at: dt.datetime) -> dict[str, str]:
    """Return the headers of an archive made at this time."""
    name = f"myhealth-export-{created_at:%Y-%m-%d}.zip"
    return {"content-type": "application/zip", "content-disposition": f'attachment; filename="{name}"'}


@operation(
    "GET",
    "/v1/me/export",
    summary="Export everything that is held about the user",
    description=(
        "A zip: manifest.json, schema.json and a file of JSON lines for each kind of data; "
        "protocol/export.schema.json describes it. One at a time for each user."
    ),
    tag="privacy",
    limit="exports",
    archive="The archive, streamed. It is whole when the response ends properly.",
    problems=(429,),
)
async def export_me(call: Call[None, None]) -> Response:
    """Begin the archive; it is made while it is sent."""
    if call.scope["method"] == "HEAD":
        return Response(None, 200, archive_headers(dt.datetime.now(dt.UTC)))
    # What makes archives is not needed at boot.
    from agent_backend.db import export  # noqa: PLC0415

    services, user = call.services, call.user_id
    if user in services.exporting or len(services.exporting) >= MAX_EXPORTS:
        raise TooManyRequests("Another export is being made.", retry_after=_AGAIN_SECONDS, limit="exports")
    services.exporting.add(user)
    try:
        return ArchiveResponse(
            await export.begin(services.database, user, services.settings.release), services, user
        )
    except BaseException:
        services.exporting.discard(user)
        raise


@operation(
    "DELETE",
    "/v1/me",
    summary="Erase the user",
    description=(
        "Deletes everything that is held about the user, and the account with the token issuer. Running "
        "turns end. From here on the user's writes are refused with 410 account_erased, however long the "
        "token lives. Sending again is harmless and answers the same receipt."
    ),
    tag="privacy",
    replies={200: Erased, 202: Erased},
)
async def erase_me(call: Call[None, None]) -> Response:
    """Answer 200 when everything is gone, 202 when it is recorded and being gone on with."""
    erasure = await call.services.machine.erase(call.user_id)
    call.services.authenticator.forget(call.user_id)
    done = erasure.completed_at is not None
    receipt = Erased(
        receipt=erasure.receipt,
        status="erased" if done else "erasing",
        requested_at=erasure.requested_at,
        completed_at=erasure.completed_at,
        rows=erasure.counts,
        account=erasure.account,
    )
    return reply(receipt, 200 if done else 202)


OPERATIONS = (export_me, erase_me)
