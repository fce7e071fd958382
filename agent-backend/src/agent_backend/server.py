"""Runs the app under uvicorn: what the boot waits for, and what a stop waits for.

The socket listens before anything slow happens: a request that woke the machine waits in the backlog
and is answered the moment we are ready, instead of being refused and tried again.
"""

from __future__ import annotations

import asyncio
import gc
import select
import signal
import time
from collections.abc import Sequence
from socket import socket
from types import FrameType

import uvicorn
from starlette.routing import Router

from agent_backend import telemetry
from agent_backend.app import create_app, drain, warm
from agent_backend.errors import OperatorError
from agent_backend.settings import Settings
from agent_backend.sleeping import Sleeper
from agent_backend.telemetry import Log
from agent_backend.web.connections import HttpConnection, SocketConnection
from agent_backend.web.services import Services

_LAST_LOOK_SECONDS = 0.03
_HALVES_SECONDS = 2.0
_CLOSE_SECONDS = 5
"""What connections get to close after the drain."""
_REPORT_SECONDS = 2.0
"""What the last errors get to reach Sentry."""
_KILL_SECONDS = 4.5
"""How long after DRAIN_SECONDS the host kills, less a little: fly.toml's kill_timeout."""
_MAX_FRAME = 64 * 1024

_YOUNG_OBJECTS = 10_000
"""Streams make and drop objects by the thousand; a look every 700, Python's default, finds nothing."""

log = Log("server")


class Server(uvicorn.Server):
    """uvicorn's server with our order of starting and stopping."""

    _warming: asyncio.Task[None] | None = None
    _sleeping: asyncio.Task[None] | None = None
    _listening: Sequence[socket] = ()
    _asleep = False
    stopping_since: float | None = None
    """On the monotonic clock."""
    _halves_since: float | None = None
    """Since when only halves of heads have been in the way of sleep."""

    @property
    def services(self) -> Services:
        """What the app's lifespan has put together; only after startup."""
        return self.lifespan.state["services"]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Stop; a second SIGINT stops at once.

        uvicorn's own raises the signal again after the shutdown, and a clean stop would not exit with 0.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start, then warm up behind the first requests."""
        await super().startup(sockets)
        self._listening = sockets or ()
        if self.services.settings.sleep != "never":
            self._sleeping = asyncio.create_task(Sleeper(self.services, self._quiet, self._leave).run())
        # What the boot made stays: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
        gc.enable()
        self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        # At once: what woke us most likely is a turn, and its imports are the longest part of a wake.
        try:
            await warm(self.services)
        except Exception as error:  # noqa: BLE001 - the first turn will say it to whom it concerns
            log.warning("warm_failed", error=error)
        # As after the boot: a full collection over what the imports made holds up every stream.
        gc.freeze()

    # --- sleeping ---

    def _quiet(self) -> bool:
        """Whether no connection is open but idle ones, which are closed by that."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpConnection):
                connection.close_if_idle()
        still = [each for each in self.server_state.connections if not each.transport.is_closing()]
        if not still or self.server_state.tasks:
            self._halves_since = None
            return not self.server_state.tasks
        halves = [each for each in still if isinstance(each, HttpConnection) and each.half]
        if len(halves) < len(still) or not self._tired_of_halves():
            return False
        for each in halves:
            each.turn_away()
        return True

    def _tired_of_halves(self) -> bool:
        """Whether nothing but halves of heads has kept us awake for a while.

        Strangers can keep some coming for ever; the proxy never sends any. A client that reaches us directly
        and whose head is cut in two at this very moment is told to come again.
        """
        now, used = time.monotonic(), self.services.last_used
        if self._halves_since is None or self._halves_since < used:
            self._halves_since = now
        return now - self._halves_since >= _HALVES_SECONDS

    def _leave(self) -> bool:
        """Stop listening and end, unless a connection is waiting to be accepted.

        After this a connection is refused at once, so that the proxy tries again and wakes the next process.
        """
        if select.select(self._listening, [], [], 0)[0]:
            return False
        for server in self.servers:
            server.close()
        for each in self._listening:
            each.close()
        self._asleep = self.should_exit = True
        return True

    def _needed(self) -> bool:
        """Whether anybody came after all."""
        services = self.services
        return bool(services.serving or services.machine.hub.live or self.server_state.tasks)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Drain while still accepting, then close."""
        self.stopping_since = time.monotonic()
        if self._sleeping is not None:
            self._sleeping.cancel()
        if self._asleep:
            # What was accepted at the last moment shows itself now, and gets what turns get at SIGTERM.
            await asyncio.sleep(_LAST_LOOK_SECONDS)
        if not self.force_exit and not (self._asleep and not self._needed()):
            await drain(self.services)
        if self._warming is not None:
            self._warming.cancel()
        await super().shutdown(sockets)


def config(app: Router, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration; tests run the app under the same."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=HttpConnection,
        ws=SocketConnection,
        ws_max_size=_MAX_FRAME,
        ws_per_message_deflate=False,
        ws_ping_interval=15,
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )


def run(settings: Settings, listening: socket) -> int:
    """Serve on a listening socket until a signal; return 0. Raises OperatorError when it cannot start."""
    telemetry.note_boot_phase("imported")
    telemetry.configure(settings.log_level, machine=settings.machine_id)
    reporter = None
    if settings.sentry_dsn:
        from agent_backend import sentry  # noqa: PLC0415 - most boots need none

        reporter = sentry.install(settings)
    refusals: list[OperatorError] = []
    server = Server(config(create_app(settings, refusals.append), settings))
    try:
        server.run([listening])
    except SystemExit:  # how uvicorn ends when the lifespan failed
        if refusals:
            raise refusals[0] from None
        raise
    finally:
        if reporter is not None:
            stopping = time.monotonic() - (server.stopping_since or time.monotonic())
            reporter.close(min(_REPORT_SECONDS, settings.drain_seconds + _KILL_SECONDS - stopping))
    return 0
