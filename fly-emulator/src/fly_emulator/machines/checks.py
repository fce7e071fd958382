"""Health checks: of services, which gate routing, and of the machine, which only inform.

Source: superfly/docs `reference/health-checks`; names of service checks as the API shows them
("servicecheck-00-tcp-8080"). From a start until a check's first pass it runs every `fast` seconds and at
once, so that a wake is as long as the program needs and no longer; failures in the grace period do not count.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import aiohttp
import msgspec

from fly_emulator.clock import timestamp
from fly_emulator.machine_config import Check, MachineConfig, duration_seconds
from fly_emulator.machines.environment import HOST

Status: TypeAlias = Literal["passing", "warning", "critical"]
_OUTPUT = 200
"""Characters kept of what a check answered."""
_PENDING = "waiting for status update"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one check; `updated_at` is when its status last changed."""

    name: str
    status: Status
    output: str
    updated_at: str


class _Probe(msgspec.Struct, kw_only=True):
    """One check that runs, and the internal port whose routing it gates (None: it only informs)."""

    name: str
    check: Check
    port: int
    gates: int | None
    hidden: bool = False
    """Ours, not configured: whether the port accepts connections at all."""
    result: Result


class Checks:
    """The checks of one run of a machine."""

    def __init__(
        self,
        config: MachineConfig,
        ports: Mapping[int, int],
        *,
        client: Callable[[], aiohttp.ClientSession],
        changed: Callable[[Result], None],
        fast: float,
        probe_ports: bool,
    ) -> None:
        self._ports = ports
        self._client = client
        self._changed = changed
        self._fast = fast
        self._probes = _probes(config, probe_ports=probe_ports)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Forget what was and begin again: after a start, and after a resume."""
        self.stop()
        for probe in self._probes:
            probe.result = _pending(probe.name)
            self._tasks.append(asyncio.create_task(self._run(probe)))

    def stop(self) -> None:
        """Check no more; the results stay."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def results(self) -> list[Result]:
        """Return the configured checks' states."""
        return [probe.result for probe in self._probes if not probe.hidden]

    def healthy(self, internal_port: int) -> bool:
        """Say whether all that gates this port passes."""
        gates = [probe for probe in self._probes if probe.gates == internal_port]
        return all(probe.result.status == "passing" for probe in gates)

    async def _run(self, probe: _Probe) -> None:
        loop = asyncio.get_running_loop()
        grace_until = loop.time() + duration_seconds(probe.check.grace_period)
        interval = duration_seconds(probe.check.interval)
        passed = False
        while True:
            failure = await self._once(probe)
            if failure is None:
                passed = True
                self._note(probe, "passing", "Success")
            elif loop.time() >= grace_until or passed:
                self._note(probe, "critical", failure)
            if probe.hidden and passed:
                return
            await asyncio.sleep(interval if passed else min(self._fast, interval))

    async def _once(self, probe: _Probe) -> str | None:
        """Check once; return what is wrong."""
        timeout = duration_seconds(probe.check.timeout)
        port = self._ports[probe.port]
        try:
            async with asyncio.timeout(timeout):
                if probe.check.type == "tcp":
                    return await _tcp(port)
                return await self._http(probe.check, port)
        except TimeoutError:
            return f"timeout reached: no answer within {probe.check.timeout}"
        except (OSError, aiohttp.ClientError) as error:
            return f"connect: {error}"[:_OUTPUT]

    async def _http(self, check: Check, port: int) -> str | None:
        headers = [(name, value) for name, values in check.headers.items() for value in values]
        url = f"{check.protocol}://{HOST}:{port}{check.path}"
        async with self._client().request(
            check.method, url, headers=headers, allow_redirects=False, ssl=not check.tls_skip_verify
        ) as response:
            text = (await response.content.read(_OUTPUT)).decode(errors="replace")
            return None if 200 <= response.status < 300 else f"{response.status} {response.reason}: {text}"

    def _note(self, probe: _Probe, status: Status, output: str) -> None:
        old = probe.result
        same = old.status == status
        updated = old.updated_at if same else timestamp()
        probe.result = Result(name=probe.name, status=status, output=output, updated_at=updated)
        if not same:
            self._changed(probe.result)


async def _tcp(port: int) -> None:
    _, writer = await asyncio.open_connection(HOST, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _pending(name: str) -> Result:
    return Result(name=name, status="warning", output=_PENDING, updated_at=timestamp())


def _probes(config: MachineConfig, *, probe_ports: bool) -> list[_Probe]:
    found: list[_Probe] = []
    number = 0
    gated: set[int] = set()
    for service in config.services:
        for check in service.checks:
            port = check.port or service.internal_port
            name = f"servicecheck-{number:02d}-{check.type}-{port}"
            found.append(
                _Probe(name=name, check=check, port=port, gates=service.internal_port, result=_pending(name))
            )
            gated.add(service.internal_port)
            number += 1
    for name, check in config.checks.items():
        port = check.port or (config.services[0].internal_port if config.services else None)
        if port is not None:
            found.append(_Probe(name=name, check=check, port=port, gates=None, result=_pending(name)))
    bare = {service.internal_port for service in config.services if service.protocol == "tcp"} - gated
    for port in sorted(bare if probe_ports else ()):
        name, check = f"accepts-{port}", Check(type="tcp", grace_period="0s")
        found.append(
            _Probe(name=name, check=check, port=port, gates=port, hidden=True, result=_pending(name))
        )
    return found
