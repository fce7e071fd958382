"""A machine: a real process that is started, stopped, frozen and thawed as Fly does it with a VM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.errors import EmulatorError, LaunchError, StateError
from fly_emulator.machine_config import MachineConfig, duration_seconds
from fly_emulator.machines import connections, environment, states
from fly_emulator.machines.cell import Cell
from fly_emulator.machines.checks import Checks, Result
from fly_emulator.machines.events import EventRequest, EventSource, EventType, describe, exit_event
from fly_emulator.machines.freeze import suspend_obstacle
from fly_emulator.machines.host import Host
from fly_emulator.machines.process import Process, signal_number
from fly_emulator.machines.record import Record
from fly_emulator.machines.restarts import Restarts
from fly_emulator.machines.tasks import uncancelled
from fly_emulator.ports import State

_MAX_STOP_TIMEOUT = 300.0
_EARLY = 10.0
"""A process that ends sooner has died at start: its last lines are repeated."""

_LEFT_STOPPED = "machine was in a non-started state prior to the update so leaving the new version stopped"


class Machine:
    """Implements `ports.MachineView`; the operations raise StateError where the state forbids them."""

    def __init__(self, record: Record, host: Host) -> None:
        self.record = record
        self.id = record.id
        self.name = record.name
        self.region = record.region
        self.ports: dict[int, int] = {}
        self.last_output: list[str] = []
        self._host = host
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._cell: Cell | None = None
        self._checks: Checks | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._restarter: asyncio.Task[None] | None = None
        self._restarts = Restarts(host.settings.restart_window)
        self._started_at = 0.0

    # What others see.

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self.record.state

    @property
    def config(self) -> MachineConfig:
        """What it is made of."""
        return self.record.config

    @property
    def cordoned(self) -> bool:
        """Taken out of routing."""
        return self.record.cordoned

    @property
    def pid(self) -> int | None:
        """The main child's pid, None when nothing runs."""
        return None if self._process is None else self._process.pid

    def healthy(self, internal_port: int) -> bool:
        """Say whether it is started and the checks of this service pass."""
        return self.state == "started" and self._checks is not None and self._checks.healthy(internal_port)

    def address(self, internal_port: int) -> tuple[str, int]:
        """Return where the process listens; before the first start the port itself."""
        return environment.HOST, self.ports.get(internal_port, internal_port)

    async def wait_healthy(self, internal_port: int, timeout: float) -> bool:  # noqa: ASYNC109 - the port's
        """Wait until `healthy`; False when the time is over or it is neither starting nor started."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    ticket = self._host.changed.ticket
                    if self.healthy(internal_port):
                        return True
                    if self.state not in ("starting", "started"):
                        return False
                    await ticket.wait()
        except TimeoutError:
            return False

    def check_results(self) -> list[Result]:
        """Return the states of its checks."""
        return [] if self._checks is None else self._checks.results()

    # Operations.

    @uncancelled
    async def start(self, *, source: EventSource = "user") -> None:
        """Start it, or resume it if it is suspended; one that runs stays. Raises StateError, LaunchError."""
        states.admit("start", self.state)
        async with self._lock:
            if not states.admit("start", self.state):
                return
            self._restarts.clear()
            self._say("Starting machine")
            if self.state == "suspended":
                await self._resume(source)
            else:
                await self._launch(source)

    @uncancelled
    async def stop(
        self,
        *,
        kill_signal: str | None = None,
        kill_timeout: float | None = None,
        source: EventSource = "user",
    ) -> None:
        """Signal it, SIGKILL it after the timeout, and return when it is stopped. Raises StateError."""
        states.admit("stop", self.state)
        async with self._lock:
            if states.admit("stop", self.state):
                await self._stop(source, kill_signal, kill_timeout)

    @uncancelled
    async def suspend(self, *, source: EventSource = "user") -> None:
        """Freeze it, or stop it where Fly does not suspend such a machine. Raises StateError."""
        states.admit("suspend", self.state)
        async with self._lock:
            if not states.admit("suspend", self.state):
                return
            obstacle = suspend_obstacle(self.config)
            if obstacle is None:
                await self._suspend(source)
            else:
                self._say(f"machine cannot be suspended ({obstacle}), stopping it instead", level="warn")
                await self._stop(source)

    @uncancelled
    async def restart(self, *, kill_signal: str | None = None, kill_timeout: float | None = None) -> None:
        """Stop it and start it. Raises StateError, LaunchError."""
        states.admit("restart", self.state)
        async with self._lock:
            if states.admit("restart", self.state):
                self._restarts.clear()
                self._move("restarting", "restart", "user")
                await self._end(kill_signal, kill_timeout, restarting=True)
                await self._launch("flyd")

    @uncancelled
    async def update(
        self, config: MachineConfig, *, launch: bool = True, accepted: Callable[[], None] | None = None
    ) -> None:
        """Replace the configuration, and the process with it; a snapshot is discarded. Raises StateError.

        `accepted` is called as soon as the new version is in force, before the old process has ended.
        What did not run before stays stopped, as on Fly.
        """
        states.admit("update", self.state)
        async with self._lock:
            states.admit("update", self.state)
            before, old = self.state, self.config
            self.record.adopt(config, self._host.provision(config))
            self._move("replacing", "update", "user")
            if accepted is not None:
                accepted()
            self._forget_restart()
            await self._end(None, None, stop_config=old, now=before == "suspended")
            await asyncio.sleep(self._host.settings.replace_seconds)
            self._restarts.clear()
            if launch and (before in states.RUNNING or before == "failed"):
                await self._launch("flyd")
            elif launch:
                self._say(_LEFT_STOPPED)
                self._move("stopped", "update", "flyd")
            else:
                # Not `created`: flyctl updates what sleeps so, and the proxy wakes it afterwards.
                self._move("stopped", "update", "flyd")

    @uncancelled
    async def destroy(self, *, force: bool = False) -> None:
        """Remove it for good; `force` kills what runs. Raises StateError."""
        states.admit("destroy", self.state, force=force)
        async with self._lock:
            if states.admit("destroy", self.state, force=force):
                await self._destroy("user")

    def signal(self, number: int) -> None:
        """Signal the main child. Raises StateError."""
        states.admit("signal", self.state)
        if self._process is not None:
            self._process.signal(number)

    def cordon(self, *, cordoned: bool) -> None:
        """Take it out of routing, or back in."""
        self.record.cordoned = cordoned
        self._touched()

    @uncancelled
    async def prepare(self) -> None:
        """Go from `created` to `stopped`, unless it was started meanwhile.

        Fly does so once the image is there: flyctl waits for `stopped` before it starts a machine that it
        created with `skip_launch` (internal/command/deploy/machines_releasecommand.go).
        """
        async with self._lock:
            if self.state == "created":
                self._move("stopped", "launch")

    def listening(self) -> dict[int, int]:
        """Return the internal ports where somebody listens, each with its real port."""
        if self.state != "started":
            return {}
        return {port: own for port, own in self.ports.items() if not environment.is_free(own)}

    def set_metadata(self, key: str, value: str | None) -> None:
        """Set or remove one pair; the version stays."""
        others = {name: text for name, text in self.config.metadata.items() if name != key}
        metadata = others if value is None else {**others, key: value}
        self.record.config = msgspec.structs.replace(self.config, metadata=metadata)
        self._touched()

    async def settled(self) -> None:
        """Wait for the operation in progress, if any."""
        async with self._lock:
            return

    def kill(self) -> None:
        """End its processes at once; the fleet is going away."""
        self._forget_restart()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._process is not None:
            self._process.kill()

    def environment(self) -> dict[str, str]:
        """Return the variables its process has."""
        host = self._host
        identity = environment.Identity(
            app=host.app,
            machine_id=self.id,
            region=self.region,
            primary_region=host.primary_region,
            private_ip=self.record.private_ip,
            version=self.record.instance_id,
            api_socket=host.socket_path(self.id),
        )
        settings = host.settings
        return environment.environment(
            self.config,
            identity,
            self.ports,
            image=self.image,
            passed=settings.passed,
            secrets=self._host.secrets.values(self.record.provision.secrets),
        )

    @property
    def image(self) -> environment.Image:
        """What it runs: pulled at its last update, or what the settings say now."""
        return self.record.provision.image or self._host.settings.image_of(self.config.image)

    @property
    def cwd(self) -> Path | None:
        """The directory its command runs in."""
        cwd = self.image.cwd
        return None if cwd is None else Path(cwd)

    # How they are done; the lock is held.

    async def _launch(self, source: EventSource) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        settings = self._host.settings
        self._move("starting", "start", source)
        await self._host.ready(self.id)
        self._cell = Cell(self.id, self.config.guest.memory_mb, settings)
        for note in self._cell.notes:
            self._say(note, level="warn")
        try:
            self.ports = environment.assign_ports(environment.internal_ports(self.config), self.ports)
            argv = environment.command(self.config, self.image, self.ports)
            self._say(f"Preparing to run: `{' '.join(argv)}`")
            process = await Process.spawn(
                argv,
                env=self.environment(),
                cwd=self.cwd,
                on_line=lambda line: self._host.output(self.record, line),
                on_exit=self._cell.kill,
                cgroups=self._cell.files,
            )
        except (OSError, EmulatorError) as error:
            await self._fail(error)
            raise LaunchError(f"machine {self.id} could not be started: {error}") from error
        self._process = process
        self._started_at = loop.time()
        self.record.process = process.identity
        self._move("started", "start", "flyd")
        self._say(f"machine started in {(loop.time() - began) * 1000:.0f}ms")
        self._checks = self._new_checks()
        self._checks.start()
        self._watcher = asyncio.create_task(self._watch(process))

    async def _fail(self, error: Exception) -> None:
        hint = error.hint if isinstance(error, EmulatorError) else ""
        self._say(f"Failed to spawn command: {error}{f' ({hint})' if hint else ''}", level="error")
        await self._leave_cell()
        self._move("failed", "exit", "flyd")

    def _new_checks(self) -> Checks:
        settings = self._host.settings
        return Checks(
            self.config,
            self.ports,
            client=self._host.client,
            changed=self._checked,
            fast=settings.check_fast,
            probe_ports=settings.probe_ports,
        )

    def _checked(self, result: Result) -> None:
        self._host.log.write(
            self.id, self.region, f"Health check '{result.name}' is now {result.status}", source="health"
        )
        self._host.changed.notify()

    async def _resume(self, source: EventSource) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        process, cell = self._process, self._cell
        assert process is not None
        assert cell is not None
        self._move("starting", "start", source)
        await cell.freezer.thaw(process.pid)
        self._move("started", "start", "flyd")
        self._say(f"machine started in {(loop.time() - began) * 1000:.0f}ms")
        self._new_start_of_checks()

    def _new_start_of_checks(self) -> None:
        if self._checks is not None:
            self._checks.start()

    async def _suspend(self, source: EventSource) -> None:
        process, cell = self._process, self._cell
        assert process is not None
        assert cell is not None
        self._say("Suspending virtual machine")
        self._move("suspending", "suspend", source)
        if self._checks is not None:
            self._checks.stop()
        try:
            await cell.freezer.freeze(process.pid)
        except StateError:
            if process.returncode is None:
                await cell.freezer.thaw(process.pid)
                self._move("started", "start", "flyd")
                self._new_start_of_checks()
            raise
        if self._host.settings.cut_connections:
            await self._cut(process.members() | cell.pids())
        self._move("suspended", "suspend", "flyd")
        self._say("Virtual machine has been suspended")

    async def _cut(self, pids: frozenset[int]) -> None:
        if await connections.cut(pids) is None:
            self._say("its connections stay open: this host does not let us destroy them", level="warn")

    async def _stop(
        self, source: EventSource, kill_signal: str | None = None, kill_timeout: float | None = None
    ) -> None:
        self._forget_restart()
        frozen = self.state == "suspended"
        self._move("stopping", "stop", source)
        await self._end(kill_signal, kill_timeout, now=frozen)
        self._move("stopped")
        if self.config.auto_destroy:
            # However it ended: flyctl stops the machine of `fly console` and waits until it is destroyed.
            await self._destroy("flyd")

    async def _end(
        self,
        kill_signal: str | None,
        kill_timeout: float | None,
        *,
        stop_config: MachineConfig | None = None,
        now: bool = False,
        restarting: bool = False,
    ) -> None:
        """End the process because it was asked for; `now` kills it (a frozen one hears no signal)."""
        process = self._process
        if process is None:
            return
        config = (stop_config or self.config).stop_config
        seconds = duration_seconds(config.timeout) if kill_timeout is None else kill_timeout
        code = None
        if not now:
            name = kill_signal or config.signal
            self._say(f"Sending signal {name} to main child process w/ PID {process.pid}")
            process.signal(signal_number(name))
            code = await process.wait_within(min(seconds, _MAX_STOP_TIMEOUT))
        if code is None:
            if not now:
                self._say(f"Sending signal SIGKILL to main child process w/ PID {process.pid}", level="warn")
            process.kill()
            if self._cell is not None:
                await self._cell.freezer.thaw(process.pid)
            code = await process.wait()
        await self._gone(process, code, requested=True, restarting=restarting)

    async def _destroy(self, source: EventSource) -> None:
        self._forget_restart()
        self._move("destroying", "destroy", source)
        await self._end(None, None, now=True)
        self._move("destroyed", "destroy", "flyd")

    async def _gone(self, process: Process, code: int, *, requested: bool, restarting: bool) -> None:
        """Note the end of the process, and clean up after it."""
        oom = self._cell is not None and self._cell.oom_killed()
        self._say(describe(code))
        if oom:
            self._say("Out of memory: Killed process", level="error")
        if self._checks is not None:
            self._checks.stop()
        await self._leave_cell()
        self._process = self.record.process = None
        self.last_output = list(process.tail)
        outcome = exit_event(code, oom_killed=oom, requested_stop=requested, restarting=restarting)
        request = EventRequest(exit_event=outcome, restart_count=len(self._restarts))
        self.record.add("exit", "stopped", "flyd", keep=self._host.settings.events_kept, request=request)
        self._touched()

    async def _leave_cell(self) -> None:
        cell, self._cell = self._cell, None
        if cell is not None:
            await cell.remove()

    # When it ends by itself.

    async def _watch(self, process: Process) -> None:
        code = await process.wait()
        async with self._lock:
            if self._process is not process:
                return
            again = self.state == "started" and self._may_restart(code)
            early = asyncio.get_running_loop().time() - self._started_at < _EARLY
            await self._gone(process, code, requested=False, restarting=again)
            if code != 0 and early:
                self._tell_last_words()
            if not again:
                if self.config.auto_destroy:
                    await self._destroy("flyd")
                else:
                    self._move("stopped")
                return
            self._restarts.note(asyncio.get_running_loop().time())
            self._move("restarting")
            # A task of its own, so that a stop or a deploy can come while it waits, and end it.
            self._restarter = asyncio.create_task(self._restart_later())

    async def _restart_later(self) -> None:
        await asyncio.sleep(self._host.settings.restart_backoff)
        async with self._lock:
            self._restarter = None
            if self.state == "restarting":
                try:
                    await self._launch("flyd")
                except LaunchError:
                    # The log has it, and the state is `failed`: there is nobody to tell.
                    return

    def _forget_restart(self) -> None:
        if self._restarter is not None:
            self._restarter.cancel()
            self._restarter = None

    def _may_restart(self, code: int) -> bool:
        now = asyncio.get_running_loop().time()
        refusal = self._restarts.refusal(self.config.restart, code, now)
        if refusal is not None:
            self._say(refusal)
        return refusal is None

    def _tell_last_words(self) -> None:
        self._say("it died at start; its last output:", level="error")
        for line in self.last_output:
            self._say(f"  {line}", level="error")

    # Notes.

    def _move(self, state: State, kind: EventType | None = None, source: EventSource = "flyd") -> None:
        states.check_move(self.record.state, state)
        self.record.state = state
        if kind is not None:
            self.record.add(kind, state, source, keep=self._host.settings.events_kept)
        self._touched()

    def _touched(self) -> None:
        self.record.updated_at = timestamp()
        self._host.save()
        self._host.changed.notify()

    def _say(self, message: str, *, level: str = "info") -> None:
        self._host.log.write(self.id, self.region, message, level=level)
