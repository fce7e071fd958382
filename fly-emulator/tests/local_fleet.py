"""Machines for tests of the edge: real HTTP or TCP servers on loopback in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from fly_emulator.edge.loads import Signal
from fly_emulator.errors import EmulatorError
from fly_emulator.machine_config import Concurrency, MachineConfig, Port, Service
from fly_emulator.ports import State

HOST = "127.0.0.1"
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = web.Application | RawHandler
_IDS = itertools.count(0x90801679A10038)


def service(
    *,
    soft: int = 20,
    hard: int | None = None,
    kind: str = "requests",
    ports: tuple[Port, ...] = (Port(port=80, handlers=("http",)), Port(port=443, handlers=("http", "tls"))),
    **more: Any,
) -> Service:
    limits = Concurrency(
        type="connections" if kind == "connections" else "requests", soft_limit=soft, hard_limit=hard
    )
    return Service(internal_port=8080, ports=ports, concurrency=limits, **more)


class LocalMachine:
    """A server that starts and stops; `gate` holds a start back until the test opens it."""

    def __init__(self, fleet: LocalFleet, serve: Callable[[LocalMachine], Serve], region: str) -> None:
        self.id = f"{next(_IDS):014x}"
        self.name = self.id
        self.region = region
        self.state: State = "stopped"
        self.cordoned = False
        self.config = MachineConfig(services=(service(),))
        self.passing = True
        self.starts = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.stop_gate = asyncio.Event()
        self.stop_gate.set()
        self.start_error: str | None = None
        self.writers: set[asyncio.StreamWriter] = set()
        self._fleet = fleet
        self._serve = serve
        self._port = 0
        self._close: Callable[[], Awaitable[None]] | None = None

    def healthy(self, internal_port: int) -> bool:
        return internal_port == 8080 and self.state == "started" and self.passing

    def address(self, internal_port: int) -> tuple[str, int]:
        assert internal_port == 8080
        return HOST, self._port

    async def wait_healthy(self, internal_port: int, timeout: float) -> bool:  # noqa: ASYNC109 - the port's
        try:
            async with asyncio.timeout(timeout):
                while not self.healthy(internal_port):
                    if self.state not in {"starting", "started"}:
                        return False
                    await self._fleet.signal.ticket()
        except TimeoutError:
            return False
        return True

    def become(self, state: State) -> None:
        self.state = state
        self._fleet.signal.notify()

    def set_passing(self, *, passing: bool) -> None:
        self.passing = passing
        self._fleet.signal.notify()

    async def start(self) -> None:
        self.starts += 1
        if self.start_error is not None:
            raise EmulatorError(self.start_error)
        self.become("starting")
        await self.gate.wait()
        served = self._serve(self)
        if isinstance(served, web.Application):
            await self._start_app(served)
        else:
            await self._start_raw(served)
        self.become("started")

    async def _start_app(self, app: web.Application) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        assert runner.server is not None
        server = await asyncio.get_running_loop().create_server(runner.server, HOST, 0)
        self._port = server.sockets[0].getsockname()[1]

        async def close() -> None:
            await shut(server)
            await runner.cleanup()

        self._close = close

    async def _start_raw(self, handler: RawHandler) -> None:
        closed: list[bool] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if closed:  # accepted in the moment of the stop
                writer.transport.abort()
                return
            self.writers.add(writer)
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                self.writers.discard(writer)
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

        server = await asyncio.start_server(handle, HOST, 0)
        self._port = server.sockets[0].getsockname()[1]

        async def close() -> None:
            closed.append(True)
            await shut(server)
            for writer in list(self.writers):
                writer.transport.abort()
            while self.writers:
                await asyncio.sleep(0)

        self._close = close

    async def stop(self, end: State = "stopped") -> None:
        self.become("suspending" if end == "suspended" else "stopping")
        await self.stop_gate.wait()
        await self.kill()
        self.become(end)

    async def kill(self) -> None:
        """End the server, whatever the state says."""
        close, self._close = self._close, None
        if close is not None:
            await close()


async def shut(server: asyncio.Server) -> None:
    """Close a server after it has taken what it has accepted.

    Python 3.11 drops a connection that was accepted just before: the beginning of its transport fails
    in `Server._attach`, and the socket is left to the garbage collector, which tells some later test of it.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    await asyncio.sleep(0)
    server.close()


class LocalFleet:
    """A FleetView over them."""

    def __init__(self) -> None:
        self.app = "testapp"
        self.primary_region = "fra"
        self.signal = Signal()
        self.all: list[LocalMachine] = []

    def add(self, serve: Callable[[LocalMachine], Serve], region: str = "fra") -> LocalMachine:
        machine = LocalMachine(self, serve, region)
        self.all.append(machine)
        return machine

    def machines(self) -> Sequence[LocalMachine]:
        return [machine for machine in self.all if machine.state != "destroyed"]

    def get(self, machine_id: str) -> LocalMachine | None:
        return next((machine for machine in self.machines() if machine.id == machine_id), None)

    async def start(self, machine_id: str) -> None:
        machine = self.get(machine_id)
        assert machine is not None
        await machine.start()

    async def stop(self, machine_id: str) -> None:
        machine = self.get(machine_id)
        assert machine is not None
        await machine.stop()

    async def suspend(self, machine_id: str) -> None:
        machine = self.get(machine_id)
        assert machine is not None
        await machine.stop("suspended")

    async def changes(self) -> AsyncGenerator[None]:
        while True:
            await self.signal.ticket()
            yield

    async def close(self) -> None:
        for machine in self.all:
            await machine.kill()


def whoami(machine: LocalMachine) -> web.Application:
    """Answer every request with who got what."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response(
            {
                "machine": machine.id,
                "path": request.path_qs,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "length": len(body),
                "starts": machine.starts,
            }
        )

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{tail:.*}", answer)
    return app


def answering(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> Callable[[LocalMachine], web.Application]:
    """Make a server of one handler."""

    def make(_machine: LocalMachine) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", handler)
        return app

    return make


def raw(handler: RawHandler) -> Callable[[LocalMachine], RawHandler]:
    """Make a server that speaks for itself."""
    return lambda _machine: handler
