"""The edge: listens for the app's services and sends what comes to its machines."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from fly_emulator.edge.autostop import Autostop
from fly_emulator.edge.certificate import server_context
from fly_emulator.edge.clients import Clients, Entry
from fly_emulator.edge.exchange import DEAD, Upstream
from fly_emulator.edge.faults import Faults
from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.pool import Pool
from fly_emulator.edge.router import Router
from fly_emulator.edge.splice import Wire
from fly_emulator.errors import EmulatorError
from fly_emulator.ports import FleetView


class EdgeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the edge is doing now; machines by id."""

    loads: dict[str, int]
    websockets: dict[str, int]
    waking: list[str]
    draining: list[str]
    starts: int
    """Machines started for requests so far."""
    requests: int
    cuts: int
    """Clients broken by faults so far."""


class Edge:
    """Fly Proxy for one app, on this machine's loopback."""

    def __init__(
        self,
        fleet: FleetView,
        *,
        host: str,
        http_port: int,
        https_port: int | None,
        options: EdgeOptions,
        log: Callable[[str], None],
        state_dir: Path,
    ) -> None:
        self.fleet = fleet
        self.options = options
        self.faults = Faults()
        self._host = host
        self._http_port = http_port
        self._https_port = https_port
        self._state_dir = state_dir
        self._router = Router(fleet, options, log)
        self._log = log
        self._upstream = Upstream(self._router, Pool(options.pool_seconds, options.connect_timeout))
        self._clients = Clients(self._upstream, lambda: self._bound.get(443))
        self.autostop = Autostop(fleet, self._router, self._upstream, options)
        self._servers: list[asyncio.Server] = []
        self._bound: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # --- life ---

    async def start(self) -> None:
        """Listen. Raises EmulatorError when a port is taken."""
        try:
            await self._listen(Entry(port=80, tls=False, http=True), self._http_port)
            if self._https_port is not None:
                await self._listen(Entry(port=443, tls=True, http=True), self._https_port)
            await self._listen_others()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [
            asyncio.create_task(self._watch(), name="following the machines"),
            asyncio.create_task(self.autostop.run(), name="autostop"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._report)

    async def stop(self) -> None:
        """Stop listening and break all connections; the machines are left alone."""
        for server in self._servers:
            server.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._clients.close()
        await self._router.waker.close()
        self._upstream.pool.close()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    @property
    def http_url(self) -> str:
        """Where the service's port 80 is."""
        return f"http://{self._shown}:{self._bound[80]}"

    @property
    def https_url(self) -> str | None:
        """Where the service's port 443 is, with TLS; None without `https_port`."""
        return f"https://{self._shown}:{self._bound[443]}" if 443 in self._bound else None

    @property
    def addresses(self) -> dict[int, tuple[str, int]]:
        """Where each port of the services is, 80 and 443 included."""
        return {port: (self._host, number) for port, number in self._bound.items()}

    # --- what others ask ---

    def load(self, machine_id: str) -> int:
        """Return a machine's requests in flight and open connections, over all its services."""
        return self._router.loads.total(machine_id)

    def status(self) -> EdgeStatus:
        """Return a snapshot."""
        machines = [machine.id for machine in self.fleet.machines()]
        return EdgeStatus(
            loads={machine_id: self.load(machine_id) for machine_id in machines},
            websockets={
                machine_id: len(self._upstream.tunnels.get(machine_id, ())) for machine_id in machines
            },
            waking=[machine_id for machine_id in machines if machine_id in self._router.waker],
            draining=sorted(self._router.draining),
            starts=self._router.waker.starts,
            requests=self._clients.requests,
            cuts=self.faults.cuts,
        )

    async def drain_machine(self, machine_id: str) -> None:
        """Take a machine out of routing softly and tell its WebSockets, as before an autostop.

        Returns when they are gone or the grace is over. It stays so until it has stopped, or `undrain`.
        """
        await self.autostop.drain(machine_id)

    def undrain(self, machine_id: str) -> None:
        """Route to it again."""
        self._router.draining.discard(machine_id)
        self._router.changed.notify()

    # --- inside ---

    @property
    def _shown(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host

    async def _listen(self, entry: Entry, number: int) -> None:
        context = await self._context() if entry.tls else None
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: Wire(lambda wire: self._accept(wire, entry)),
                self._host,
                number,
                ssl=context,
                backlog=1024,
            )
        except OSError as error:
            raise EmulatorError(
                f"port {number} on {self._host} cannot be listened on: {error.strerror or error}",
                hint="end what uses it, or choose another port (0 takes a free one)",
            ) from error
        self._servers.append(server)
        self._bound[entry.port] = server.sockets[0].getsockname()[1]

    async def _listen_others(self) -> None:
        """Listen for service ports beside 80 and 443: at the same number, or at a free one."""
        for entry in self._entries():
            try:
                await self._listen(entry, entry.port if entry.port >= 1024 else 0)
            except EmulatorError:
                await self._listen(entry, 0)
                self._log(f"port {entry.port} is taken here: the service is at {self._bound[entry.port]}")

    def _entries(self) -> list[Entry]:
        found: dict[int, Entry] = {}
        for machine in self.fleet.machines():
            for service in machine.config.services:
                for offered in service.ports:
                    number = offered.port
                    if service.protocol != "tcp" or number is None or number in {80, 443, *self._bound}:
                        continue
                    tls, http = "tls" in offered.handlers, "http" in offered.handlers
                    found[number] = Entry(port=number, tls=tls, http=http)
        return list(found.values())

    async def _context(self) -> ssl.SSLContext:
        return await asyncio.to_thread(server_context, self._state_dir, self.fleet.app)

    def _accept(self, wire: Wire, entry: Entry) -> None:
        self.faults.meet(wire)
        self._clients.accept(wire, entry)

    def _report(self, task: asyncio.Task[None]) -> None:
        """Say so when a task that should never end has failed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(f"edge: {task.get_name()} has ended: {error!r}")

    async def _watch(self) -> None:
        """Follow the machines: queued requests decide again, what cannot answer any more is cut."""
        async with aclosing(self.fleet.changes()) as changes:
            async for _ in changes:
                for machine_id in list(self._router.draining):
                    machine = self.fleet.get(machine_id)
                    if machine is None or machine.state in DEAD:
                        self._router.draining.discard(machine_id)
                self._upstream.cut_dead()
                self._router.changed.notify()
                await self._listen_others()
