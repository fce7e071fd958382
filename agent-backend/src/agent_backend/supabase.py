"""The Auth admin API of Supabase, as far as it is needed: deleting a user.

`DELETE {SUPABASE_URL}/auth/v1/admin/users/{id}` with the secret key (`sb_secret_...`, or the older
`service_role` JWT) in `apikey` and as bearer. Source: Supabase's reference, "Delete a user" and "API keys".
aiohttp is imported at the first use: the boot does not wait for it.
"""

from __future__ import annotations

import asyncio
from typing import Literal
from uuid import UUID

import msgspec

from agent_backend.errors import AgentBackendError

_SECONDS = 10.0
_MAX_ANSWER = 4096


class AccountsUnavailable(AgentBackendError):
    """The account could not be deleted now; `refused`: the key is not accepted, which somebody must mend."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class AuthAdmin:
    """Administers the accounts of one Supabase project."""

    def __init__(self, url: str, key: str) -> None:
        self._users = url.rstrip("/") + "/auth/v1/admin/users"
        self._headers = {"apikey": key, "Authorization": f"Bearer {key}"}

    async def delete(self, user_id: UUID) -> Literal["deleted", "absent"]:
        """Delete a user for good, with identities and refresh tokens; asking again is harmless.

        Access tokens that were issued stay valid until they expire. Raises AccountsUnavailable.
        """
        import aiohttp  # noqa: PLC0415 - 150 ms that the boot must not wait for

        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session,
                session.delete(f"{self._users}/{user_id}", allow_redirects=False) as reply,
            ):
                status = reply.status
                missing = status == 404 and _no_such_user(await reply.content.read(_MAX_ANSWER))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:  # noqa: UP041 - aiohttp's own
            raise AccountsUnavailable(type(error).__name__) from error
        if status in (200, 204):
            return "deleted"
        if missing:
            return "absent"
        raise AccountsUnavailable(f"status {status}", refused=status in (401, 403))


class _Refusal(msgspec.Struct):
    """An error of Auth: the code stands in `error_code`, and in `code` in its newer form."""

    error_code: str = ""
    code: str | int = ""


def _no_such_user(body: bytes) -> bool:
    """Say whether Auth itself knows no such user: a gateway's 404 for a wrong address says nothing."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return "user_not_found" in (refusal.error_code, refusal.code)
