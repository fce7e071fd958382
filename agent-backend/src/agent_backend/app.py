"""Puts the server together: operations, services, lifespan. The only wiring there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module

import asyncpg
from starlette.routing import Router

from agent_backend import safety
from agent_backend.agents import load_agents
from agent_backend.auth import Authenticator
from agent_backend.consents import load as load_consents
from agent_backend.db import dsn
from agent_backend.db.jwks import StoredKeys
from agent_backend.db.migrate import verify
from agent_backend.db.pool import ROLE, Database
from agent_backend.engines.base import Engine
from agent_backend.engines.messages import MessagesEngine
from agent_backend.errors import MigrationError, OperatorError
from agent_backend.prices import micros, models
from agent_backend.settings import Settings
from agent_backend.supabase import AuthAdmin
from agent_backend.telemetry import Log, metrics, note_boot_phase
from agent_backend.tools.registry import TOOLS
from agent_backend.turns.machine import Machine
from agent_backend.turns.retention import Retention
from agent_backend.turns.spending import Limits
from agent_backend.web import (
    agents,
    agui,
    consents,
    goals,
    health,
    me,
    ops,
    privacy,
    samples,
    sessions,
    sse,
    tool_calls,
    turns,
    usage,
    websocket,
)
from agent_backend.web.limits import turns_per_user
from agent_backend.web.operations import Operation, SocketOperation, routes, unknown_path
from agent_backend.web.services import Services

OPERATIONS: tuple[Operation, ...] = (
    *sessions.OPERATIONS,
    *turns.OPERATIONS,
    *sse.OPERATIONS,
    *tool_calls.OPERATIONS,
    *agui.OPERATIONS,
    *agents.OPERATIONS,
    *samples.OPERATIONS,
    *me.OPERATIONS,
    *consents.OPERATIONS,
    *usage.OPERATIONS,
    *goals.OPERATIONS,
    *privacy.OPERATIONS,
    *health.OPERATIONS,
)
SOCKETS: tuple[SocketOperation, ...] = websocket.SOCKETS

_CONNECT_SECONDS = 10
"""A database that starts at the same time as we do is waited for this long."""
_RETRY_SECONDS = 0.1
_GOODBYE_SECONDS = 1.0
_AWAY = (OSError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)
_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)

log = Log("app")


def create_app(
    settings: Settings, on_refusal: Callable[[OperatorError], None] = lambda _error: None
) -> Router:
    """Return the ASGI application.

    Its lifespan raises OperatorError when the server cannot work, and tells `on_refusal`, because ASGI
    servers swallow the exception.
    """
    return Router(
        routes(OPERATIONS, SOCKETS),
        default=unknown_path,
        redirect_slashes=False,
        lifespan=partial(_lifespan, settings, on_refusal),
    )


@asynccontextmanager
async def _lifespan(
    settings: Settings, on_refusal: Callable[[OperatorError], None], _app: object
) -> AsyncGenerator[dict[str, Services]]:
    async with AsyncExitStack() as stack:
        try:
            services = await _start(settings, stack)
        except OperatorError as error:
            on_refusal(error)
            raise
        note_boot_phase("ready")
        log.info("ready", environment=settings.environment, release=settings.release)
        yield {"services": services}


async def _start(settings: Settings, stack: AsyncExitStack) -> Services:
    """Connect, check and start; `stack` undoes it in reverse."""
    database = Database(
        settings.database_url.reveal(),
        min_size=settings.pool_min,
        max_size=settings.pool_max,
        lock_timeout_ms=int(settings.lease_seconds * 1000 / 3),
    )
    connecting = asyncio.create_task(_connect(database))
    stack.push_async_callback(_disconnect, database, connecting)
    await asyncio.sleep(0)  # the connection is being made while the files are read
    engines = _engines(settings)
    loaded = load_agents(settings.agents_dir, TOOLS, engines, models())
    catalogue = load_consents()
    await connecting
    if settings.auth_hs256_secret:
        log.warning("hs256_accepted")
    async with database.pool.acquire() as connection:
        await verify(connection, settings.environment, settings.app_name)
    note_boot_phase("verified")
    metrics.db_pool_in_use = lambda: database.in_use
    if settings.metrics_port:
        server = await ops.start(settings.host, settings.metrics_port)
        stack.callback(server.close)
    machine = Machine(
        database,
        machine_id=settings.machine_id,
        lease_seconds=settings.lease_seconds,
        group_commit_seconds=settings.group_commit_ms / 1000,
        retention=Retention(
            events=settings.event_retention_days,
            sessions=settings.session_retention_days,
            health=settings.health_retention_days,
            calls=settings.ledger_retention_days,
            tombstones=settings.erasure_retention_days,
        ),
        accounts=_accounts(settings),
        call_seconds=settings.tool_call_seconds,
        limits=Limits(
            user_day=micros(settings.user_usd_per_day),
            user_month=micros(settings.user_usd_per_month),
            global_day=micros(settings.global_usd_per_day),
            global_month=micros(settings.global_usd_per_month),
        ),
        require_birth_year=settings.require_birth_year,
        max_user_turns=turns_per_user(settings),
        agents=loaded,
        tools=TOOLS,
        engines=engines,
        consents=catalogue,
    )
    stack.push_async_callback(machine.stop)
    await machine.start()
    note_boot_phase("registered")
    return Services(
        settings=settings,
        database=database,
        machine=machine,
        authenticator=Authenticator(
            jwks_url=settings.jwks_url,
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            last_known=StoredKeys(database, settings.jwks_url),
            hs256_secret=settings.auth_hs256_secret,
        ),
        agents=loaded,
        consents=catalogue,
    )


def _engines(settings: Settings) -> dict[str, Engine]:
    messages = MessagesEngine(settings.anthropic_base_url, settings.anthropic_api_key.reveal())
    return {messages.name: messages}


def _accounts(settings: Settings) -> AuthAdmin | None:
    """Return where users' accounts can be deleted; without a key they cannot."""
    if settings.supabase_url is None or not settings.supabase_service_key:
        return None
    return AuthAdmin(settings.supabase_url, settings.supabase_service_key.reveal())


async def warm(services: Services) -> None:
    """Import what the first turn will need, in a thread: requests are being answered meanwhile."""
    await asyncio.to_thread(import_module, "jwt.algorithms")
    await services.authenticator.warm()
    await services.machine.warm()
    await asyncio.to_thread(safety.warm)
    note_boot_phase("warm")


async def drain(services: Services) -> None:
    """Take leave, before connections are closed: readiness goes off, turns get their time, streams end."""
    services.draining = True
    log.info("draining")
    await services.machine.finish_turns(services.settings.drain_seconds)
    services.machine.hub.close_streams()
    await _streams_ended()


async def _streams_ended() -> None:
    """Let streams say goodbye in their own way before the server cuts connections."""
    deadline = asyncio.get_running_loop().time() + _GOODBYE_SECONDS
    while metrics.streams_open and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - at the very end
        await asyncio.sleep(0.01)


async def _connect(database: Database) -> None:
    deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
    while True:
        try:
            await database.open()
        except dsn.UNTRUSTED as error:
            raise dsn.untrusted(error, "DATABASE_URL") from error
        except _AWAY as error:
            if asyncio.get_running_loop().time() > deadline:
                raise OperatorError(
                    f"the database does not answer ({type(error).__name__})",
                    hint="check that it runs and that DATABASE_URL names its host and port",
                ) from error
            await asyncio.sleep(_RETRY_SECONDS)
        except _REFUSED as error:
            raise OperatorError(
                f"the database refuses the connection ({type(error).__name__})",
                hint="check user, password and database name in DATABASE_URL",
            ) from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise OperatorError(
                f"the database does not let this login work as {ROLE} ({type(error).__name__})",
                hint=f"GRANT {ROLE} to the user in DATABASE_URL (docs/security.md)",
            ) from error
        except asyncpg.InvalidParameterValueError as error:
            raise MigrationError(
                "the database does not know the server's role", hint="run `agent-backend migrate`"
            ) from error
        else:
            note_boot_phase("database")
            return


async def _disconnect(database: Database, connecting: asyncio.Task[None]) -> None:
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await database.close()
