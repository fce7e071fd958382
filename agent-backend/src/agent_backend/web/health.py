"""Is the process alive, may it get traffic, and what is it. The only operations without a token."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response

from agent_backend import __version__
from agent_backend.db.migrate import verify
from agent_backend.errors import FieldError, MigrationError, OperatorError, Unavailable
from agent_backend.telemetry import Log
from agent_backend.web.operations import Call, operation, reply
from agent_backend.web.problems import translate
from agent_backend.web.services import Services

_CHECK_SECONDS = 2
"""Less than the interval and the timeout of Fly's checks."""
_FRESH_SECONDS = 0.1

log = Log("health")


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(msgspec.Struct, frozen=True):
    """Traffic is welcome."""

    status: Literal["ready"] = "ready"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What runs here."""

    version: str
    release: str
    environment: str
    machine: str
    started_at: datetime


@operation(
    "GET",
    "/livez",
    summary="Is the process alive",
    tag="health",
    auth=False,
    replies={200: Alive},
)
async def livez(_call: Call[None, None]) -> Response:
    """Answer without looking at anything else."""
    return reply(Alive())


@operation(
    "GET",
    "/readyz",
    summary="May this machine get traffic",
    description=(
        "503 names what is missing: `superseded`, `draining`, `dozing`, `database`, `schema` or `deployment`."
    ),
    tag="health",
    auth=False,
    replies={200: Ready},
    problems=(503,),
)
async def readyz(call: Call[None, None]) -> Response:
    """Answer whether the database is there, is ours, has our schema, and we are not on our way out."""
    if call.services.machine.superseded:
        raise _not_ready("superseded", "another process runs under this machine's id")
    if call.services.draining:
        raise _not_ready("draining", "this machine is about to stop")
    if call.services.dozing:
        raise _not_ready("dozing", "this machine is about to sleep, and stays if a request comes")
    await _database_ready(call.services)
    return reply(Ready())


async def _database_ready(services: Services) -> None:
    """Check the database, once for all who ask meanwhile or in the next moment.

    This path needs no token and has no limit, because the proxy's checks must not be starved: so a flood
    of it must not become a flood of queries. Only a good answer is kept.
    """
    if time.monotonic() - services.ready_at < _FRESH_SECONDS:
        return
    checking = services.checking
    if checking is None:
        checking = services.checking = asyncio.create_task(_check_database(services))
        checking.add_done_callback(partial(_checked, services))
    # Whoever asked first may go away: the others still wait.
    await asyncio.shield(checking)


def _checked(services: Services, checking: asyncio.Task[None]) -> None:
    services.checking = None
    if not checking.cancelled() and checking.exception() is None:
        services.ready_at = time.monotonic()


async def _check_database(services: Services) -> None:
    settings = services.settings
    try:
        async with asyncio.timeout(_CHECK_SECONDS), services.database.pool.acquire() as connection:
            await verify(connection, settings.environment, settings.app_name)
    except OperatorError as error:
        log.warning("not_ready", error=error)
        raise _not_ready(
            "schema" if isinstance(error, MigrationError) else "deployment", error.problem
        ) from error
    except Exception as error:
        if not isinstance(translate(error), Unavailable):
            raise
        raise _not_ready("database", "does not answer") from error


def _not_ready(what: str, reason: str) -> Unavailable:
    return Unavailable("This machine is not ready.", errors=(FieldError(what, reason),))


@operation(
    "GET",
    "/version",
    summary="What runs here",
    tag="health",
    auth=False,
    replies={200: Version},
)
async def version(call: Call[None, None]) -> Response:
    """Answer with release, environment and machine."""
    settings = call.services.settings
    return reply(
        Version(
            version=__version__,
            release=settings.release,
            environment=settings.environment,
            machine=settings.machine_id,
            started_at=call.services.started_at,
        )
    )


OPERATIONS = (livez, readyz, version)
