"""The one place where an exception becomes a response: an RFC 9457 problem document.

`type` and `code` are stable; `detail` and `errors` are for people. No stack trace, no text of a request.
"""

from __future__ import annotations

import datetime as dt
import math

import asyncpg
import msgspec
from msgspec.structs import replace
from starlette.responses import Response

from agent_backend.errors import (
    AccountErased,
    FieldError,
    InvalidRequest,
    RequestError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:myhealth:problem:"

_RETRY_AFTER_SECONDS = 1
_ERASED = "MH410"
"""The SQLSTATE of `refuse_erased` in migrations/0011_privacy.pre.sql."""

_DATABASE_AWAY = (
    OSError,  # includes TimeoutError: no connection in time, or none at all
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,  # what asyncpg says of a connection that was dropped under it
    asyncpg.OperatorInterventionError,  # shutting down, starting up, statement timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.TransactionRollbackError,  # deadlock, serialisation
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class MethodNotAllowed(RequestError):
    """The path exists, with other methods."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Only {allowed} can be asked of this path.")
        self.allowed = allowed


class HeadTooLarge(RequestError):
    """Request line and headers are longer than we read."""

    status = 431
    code = "head_too_large"


class UpgradeRequired(RequestError):
    """The path is a WebSocket's."""

    status = 426
    code = "upgrade_required"


class Broken(RequestError):
    """We failed; what happened is in the log under the request's id."""

    status = 500
    code = "internal_error"


class ProblemField(msgspec.Struct, frozen=True):
    """One thing wrong with one field: a JSON path (`$.content`), `query.NAME` or `path.NAME`."""

    field: str
    reason: str


class ProblemConsent(msgspec.Struct, frozen=True):
    """A consent that is missing: its purpose, and the version of its text that is asked for now."""

    purpose: str
    version: str


class ProblemSafety(msgspec.Struct, frozen=True):
    """A red flag in the message that was refused: show `text`, whatever else the problem says."""

    category: str
    text: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An RFC 9457 problem document; `missing` is the extension of `consent_required`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemField] = []
    missing: list[ProblemConsent] = []
    scope: str | None = None
    """Which budget is used up."""
    left_usd_micros: int | None = None
    resets_at: dt.datetime | None = None
    """When that budget is fresh again."""
    safety: ProblemSafety | None = None
    limit: str | None = None
    """Which limit is reached, of a 429."""
    retry_after: int | None = None
    """Seconds, of a 429."""


_encode = msgspec.json.Encoder().encode


def translate(error: BaseException) -> RequestError:
    """Return the request error that an exception amounts to."""
    match error:
        case RequestError():
            return error
        case asyncpg.PostgresError() if getattr(error, "sqlstate", None) == _ERASED:
            return AccountErased("This account was erased, and takes nothing any more.")
        case asyncpg.InterfaceError() if _closed(error):
            return Unavailable("The database is not reachable at the moment.")
        case _ if isinstance(error, _DATABASE_AWAY):
            return Unavailable("The database is not reachable at the moment.")
        case asyncpg.DataError() | asyncpg.InterfaceError() if _data_refused(error):
            # Whatever validation let through: the client's data all the same, and nothing was written.
            return InvalidRequest(
                "A value cannot be stored.", errors=(FieldError("$", "has a value out of range"),)
            )
        case _:
            return Broken("The server failed on this request.")


def _data_refused(error: asyncpg.DataError | asyncpg.InterfaceError) -> bool:
    """Tell Postgres' and asyncpg's refusal of an argument; asyncpg keeps its own class for it private."""
    return isinstance(error, (asyncpg.DataError, ValueError))


def _closed(error: asyncpg.InterfaceError) -> bool:
    """Tell a lost connection from a call of ours that is wrong; asyncpg has one class for both."""
    return "clos" in str(error)


def respond(error: RequestError, request_id: str) -> Response:
    """Return the problem document of an error."""
    code = error.code
    problem = Problem(
        type=TYPE_PREFIX + code,
        title=code.replace("_", " ").capitalize(),
        status=error.status,
        detail=error.detail,
        code=code,
        request_id=request_id,
        errors=[ProblemField(*each) for each in error.errors],
        **error.members,  # pyright: ignore[reportArgumentType] - each error knows what it adds
        safety=None if error.safety is None else ProblemSafety(*error.safety),
    )
    if isinstance(error, TooManyRequests):
        problem = replace(problem, limit=error.limit, retry_after=seconds(error.retry_after))
    return Response(_encode(problem), error.status, _headers(error), MEDIA_TYPE)


def _limit_headers(error: TooManyRequests) -> dict[str, str]:
    """Return Retry-After and, for a rate, draft-ietf-httpapi-ratelimit-headers' fields.

    `t` names the moment that Retry-After names, as the draft asks for.
    """
    wait = seconds(error.retry_after)
    headers = {"Retry-After": str(wait)}
    if error.limit is not None and error.quota is not None:
        burst, window = error.quota
        headers["RateLimit-Policy"] = f'"{error.limit}";q={burst};w={window}'
        headers["RateLimit"] = f'"{error.limit}";r=0;t={wait}'
    return headers


def seconds(wait: float) -> int:
    """Return a Retry-After: whole seconds, never too few."""
    return max(1, math.ceil(wait))


def _headers(error: RequestError) -> dict[str, str]:
    match error:
        case Unauthorized():
            return {"WWW-Authenticate": 'Bearer realm="myhealth"'}
        case TooManyRequests():
            return _limit_headers(error)
        case Unavailable():
            return {"Retry-After": str(_RETRY_AFTER_SECONDS)}
        case UpgradeRequired():
            return {"Upgrade": "websocket", "Connection": "Upgrade"}
        case MethodNotAllowed():
            return {"Allow": error.allowed}
        case _:
            return {}
