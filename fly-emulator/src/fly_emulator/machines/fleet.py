"""All machines of one app, their state file, and what a dead emulator left behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec

from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.log import Log
from fly_emulator.machine_config import MachineConfig
from fly_emulator.machines import cell, processes, states
from fly_emulator.machines.broadcast import Broadcast
from fly_emulator.machines.events import EventSource
from fly_emulator.machines.lease import Leases
from fly_emulator.machines.machine import Machine
from fly_emulator.machines.provision import FixedSecrets, Provision, Secrets
from fly_emulator.machines.record import Record, new_record
from fly_emulator.machines.settings import MachineSettings


class NotFound(StateError):
    """There is no such machine."""

    def __init__(self, machine_id: str) -> None:
        super().__init__(f"not_found: machine not found: {machine_id}", status=404)


class _File(msgspec.Struct, kw_only=True):
    """The state file."""

    app: str
    primary_region: str
    machines: list[Record] = []


class Fleet:
    """Implements `ports.FleetView` and `host.Host`. Make it with `open_fleet`, end it with `close`."""

    def __init__(
        self,
        app: str,
        primary_region: str,
        directory: Path,
        settings: MachineSettings,
        log: Log,
        secrets: Secrets | None = None,
    ) -> None:
        self.app = app
        self.primary_region = primary_region
        self.settings = settings
        self.log = log
        self.secrets = secrets or FixedSecrets(settings.secrets)
        self.changed = Broadcast()
        self.sockets: Callable[[str], Path | None] = lambda _: None
        """Says where a machine finds its API; `api.MachineSockets` sets it."""
        self.opened: Callable[[str], Awaitable[None]] | None = None
        """Opens a machine's API before its first start; `api.MachineSockets` sets it."""
        self.leases = Leases()
        self._directory = directory
        self._machines: dict[str, Machine] = {}
        self._client: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outputs: dict[str, IO[str]] = {}
        self._closed = False
        self._lock: IO[str] | None = None

    # What the edge sees.

    def machines(self) -> Sequence[Machine]:
        """Return the machines that are not destroyed, oldest first."""
        return [machine for machine in self._machines.values() if machine.state != "destroyed"]

    def get(self, machine_id: str) -> Machine | None:
        """Find one that is not destroyed."""
        machine = self._machines.get(machine_id)
        return None if machine is None or machine.state == "destroyed" else machine

    async def start(self, machine_id: str, *, source: EventSource = "proxy") -> None:
        """Start a created, stopped or suspended machine; one that runs stays. Raises StateError."""
        await self.find(machine_id).start(source=source)

    async def stop(self, machine_id: str, *, source: EventSource = "proxy") -> None:
        """Signal it, SIGKILL after its timeout, and return when it is stopped. Raises StateError."""
        await self.find(machine_id).stop(source=source)

    async def suspend(self, machine_id: str, *, source: EventSource = "proxy") -> None:
        """Freeze it and cut its connections; falls back to stop as Fly does. Raises StateError."""
        await self.find(machine_id).suspend(source=source)

    def changes(self) -> AsyncGenerator[None]:
        """Yield after any change from now on; changes that come while the reader works are one."""
        return self._follow(self.changed.ticket)

    async def _follow(self, ticket: asyncio.Event) -> AsyncGenerator[None]:
        while True:
            await ticket.wait()
            ticket = self.changed.ticket
            yield

    # What the operator and the Machines API do.

    def find(self, machine_id: str) -> Machine:
        """Find one, destroyed or not. Raises NotFound."""
        try:
            return self._machines[machine_id]
        except KeyError:
            raise NotFound(machine_id) from None

    def all_machines(self) -> Sequence[Machine]:
        """Return all, the destroyed ones too."""
        return list(self._machines.values())

    def create(
        self,
        config: MachineConfig,
        *,
        name: str | None = None,
        region: str | None = None,
        cordoned: bool = False,
    ) -> Machine:
        """Create a machine and leave it in `created`. Raises StateError: 409 name taken, 400 no image."""
        if name is not None and any(machine.name == name for machine in self.machines()):
            raise StateError(f"already_exists: unique machine name violation, machine {name}", status=409)
        record = new_record(
            config,
            self.provision(config),
            name=name,
            region=region or self.primary_region,
            cordoned=cordoned,
        )
        machine = self._machines[record.id] = Machine(record, self)
        self.save()
        self.changed.notify()
        return machine

    async def update(
        self,
        machine_id: str,
        config: MachineConfig,
        *,
        launch: bool = True,
        accepted: Callable[[], None] | None = None,
    ) -> None:
        """Replace a machine's configuration. Raises StateError."""
        await self.find(machine_id).update(config, launch=launch, accepted=accepted)

    async def destroy(self, machine_id: str, *, force: bool = False) -> None:
        """Remove a machine for good. Raises StateError."""
        await self.find(machine_id).destroy(force=force)

    def cordon(self, machine_id: str, *, cordoned: bool = True) -> None:
        """Take a machine out of routing, or back in. Raises NotFound."""
        self.find(machine_id).cordon(cordoned=cordoned)

    def background(
        self, work: Callable[[], Coroutine[Any, Any, None]], machine: Machine
    ) -> asyncio.Task[None]:
        """Do something after the answer; what goes wrong is told in the log."""

        async def run() -> None:
            try:
                await work()
            except EmulatorError as error:
                self.log.write(machine.id, machine.region, error.problem, source="api", level="error")

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What machines need (host.Host).

    def client(self) -> aiohttp.ClientSession:
        """Return the session that checks use: a connection of its own for each."""
        if self._client is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "Consul Health Check"},
            )
        return self._client

    def provision(self, config: MachineConfig) -> Provision:
        """Return what a new version of a machine is given. Raises StateError (400): no such image."""
        find = self.settings.find_image
        image = None if find is None else find(config.image)
        return Provision(image=image, secrets=self.secrets.version)

    async def ready(self, machine_id: str) -> None:
        """Make sure that the machine's API is there."""
        if self.opened is not None:
            await self.opened(machine_id)

    def socket_path(self, machine_id: str) -> Path | None:
        """Say where the machine finds its API."""
        return self.sockets(machine_id)

    def output(self, record: Record, line: str) -> None:
        """Pass on a line that a machine printed, and keep it in the machine's log file."""
        self.log.write(record.id, record.region, line, source="app")
        file = self._outputs.get(record.id)
        if file is None:
            logs = self._directory / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            file = self._outputs[record.id] = (logs / f"{record.id}.log").open(
                "a", encoding="utf-8", buffering=1
            )
        file.write(line + "\n")

    def save(self) -> None:
        """Replace the state file in one step, so that a crash leaves the old or the new one."""
        if self._closed:
            return
        records = [machine.record for machine in self._machines.values()]
        state = _File(app=self.app, primary_region=self.primary_region, machines=records)
        target = self._directory / "machines.json"
        draft = target.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(msgspec.json.encode(state))
        draft.replace(target)

    # Its own life.

    async def load(self) -> None:
        """Take up the state file; what the last emulator left running is ended first."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._directory)
        target = self._directory / "machines.json"
        if not target.exists():
            return
        try:
            state = msgspec.json.decode(target.read_bytes(), type=_File)
        except msgspec.DecodeError as error:
            raise EmulatorError(f"{target} is damaged: {error}", hint="remove it to begin anew") from error
        for record in state.machines:
            await self._adopt(record)
        self.save()

    async def _adopt(self, record: Record) -> None:
        if record.process is not None:
            if processes.end_leftover(record.process, record.id):
                self.log.write(record.id, record.region, "ended what the last emulator left running")
            await cell.remove_leftover(record.id)
            record.process = None
        if record.state in ("destroying", "launch_failed"):
            record.state = "destroyed"
        elif record.state not in states.TERMINAL | {"created", "failed"}:
            record.state = "stopped"
        self._machines[record.id] = Machine(record, self)

    async def close(self, *, kill_timeout: float | None = None) -> None:
        """Stop every machine, within `kill_timeout` if given, and write the state a last time."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._shut(machine, kill_timeout) for machine in self.machines()))
        if self._client is not None:
            await self._client.close()
        for file in self._outputs.values():
            file.close()
        self._outputs.clear()
        self.save()
        self._closed = True
        self.unlock()

    def unlock(self) -> None:
        """Let another emulator use the state directory."""
        if self._lock is not None:
            self._lock.close()

    async def _shut(self, machine: Machine, kill_timeout: float | None) -> None:
        await machine.settled()
        try:
            await machine.stop(kill_timeout=kill_timeout)
        except StateError:
            machine.kill()


def _lock(directory: Path) -> IO[str]:
    """Keep a second emulator out: it would take our machines for leftovers and end them."""
    file = (directory / "lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise EmulatorError(
            f"another emulator uses {directory}", hint="end it, or choose another state directory"
        ) from None
    return file


async def open_fleet(
    app: str,
    *,
    primary_region: str,
    directory: Path,
    settings: MachineSettings | None = None,
    log: Log | None = None,
    secrets: Secrets | None = None,
) -> Fleet:
    """Make a fleet from its state directory. Raises EmulatorError: a damaged file, another emulator."""
    fleet = Fleet(app, primary_region, directory, settings or MachineSettings(), log or Log(), secrets)
    try:
        await fleet.load()
    except EmulatorError:
        fleet.unlock()
        raise
    return fleet
