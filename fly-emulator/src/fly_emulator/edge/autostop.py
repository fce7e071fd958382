"""Autostop: which machines are stopped for want of traffic, and how.

Source: superfly/docs reference/fly-proxy-autostop-autostart and launch/autostop-autostart. Which machine
of a region it is, and how long the soft cordon lasts, is not documented: options.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from fly_emulator.edge.exchange import Upstream
from fly_emulator.edge.options import EdgeOptions, StopOrder
from fly_emulator.edge.router import Router
from fly_emulator.errors import EmulatorError
from fly_emulator.machine_config import Autostop as Mode
from fly_emulator.ports import FleetView, MachineView


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as a pass of autostop sees it; oldest first in a sequence of them."""

    id: str
    region: str
    group: str
    running: bool
    mode: Mode
    load: int
    over_soft: bool
    min_running: int = 0


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """One machine to stop, and what is left of its region and process group."""

    machine: str
    mode: Mode
    region: str
    group: str
    left: int
    total: int
    alone: bool
    """Stopped because it had no load: looked at again after the soft cordon."""

    def line(self, app: str) -> str:
        """Return Fly's log line."""
        return (
            f"App {app} has excess capacity, autostopping machine {self.machine}. {self.left} out of "
            f"{self.total} machines left running (region={self.region}, process group={self.group})"
        )


def plan(machines: Sequence[Idle], primary_region: str, order: StopOrder) -> list[Stop]:
    """Return what one pass stops: at most one machine per region."""
    groups: dict[tuple[str, str], list[Idle]] = defaultdict(list)
    for machine in machines:
        groups[machine.region, machine.group].append(machine)
    stops: dict[str, Stop] = {}
    for (region, _), members in groups.items():
        if region not in stops:
            stop = _excess(members, order, primary=region == primary_region)
            if stop is not None:
                stops[region] = stop
    return list(stops.values())


def _excess(members: Sequence[Idle], order: StopOrder, *, primary: bool) -> Stop | None:
    running = [one for one in members if one.running]
    eligible = [one for one in running if one.mode != "off"]
    if not eligible:
        return None
    floor = max(one.min_running for one in running) if primary else 0
    if len(running) - 1 < floor:
        return None
    if len(running) == 1:
        if running[0].load:
            return None
    elif len(running) - (sum(one.over_soft for one in running) + 1) < 1:
        return None
    chosen = _pick(eligible, order)
    return Stop(
        machine=chosen.id,
        mode=chosen.mode,
        region=chosen.region,
        group=chosen.group,
        left=len(running) - 1,
        total=len(members),
        alone=len(running) == 1,
    )


def _pick(eligible: Sequence[Idle], order: StopOrder) -> Idle:
    if order == "oldest":
        return eligible[0]
    if order == "newest":
        return eligible[-1]
    return min(eligible, key=lambda one: one.load)


class Autostop:
    """Runs the passes."""

    def __init__(self, fleet: FleetView, router: Router, upstream: Upstream, options: EdgeOptions) -> None:
        self._fleet = fleet
        self._router = router
        self._upstream = upstream
        self._options = options

    async def run(self) -> None:
        """Make a pass every few (scaled) minutes, for ever."""
        while True:
            await asyncio.sleep(self._options.time_scale.minutes(self._options.autostop_minutes))
            await self.run_pass()

    async def run_pass(self) -> list[str]:
        """Make one pass; returns the machines that were stopped or suspended."""
        machines = [self._look(machine) for machine in self._fleet.machines() if machine.config.services]
        stops = plan(machines, self._fleet.primary_region, self._options.autostop_order)
        done = await asyncio.gather(*(self._stop(stop) for stop in stops))
        return [stop.machine for stop, stopped in zip(stops, done, strict=True) if stopped]

    async def drain(self, machine_id: str) -> None:
        """Soft-cordon, and tell the WebSockets."""
        await self._cordon(machine_id)
        await self._close_websockets(machine_id)

    def _look(self, machine: MachineView) -> Idle:
        loads, services = self._router.loads, machine.config.services
        modes: list[Mode] = [service.autostop for service in services]
        return Idle(
            id=machine.id,
            region=machine.region,
            group=machine.config.process_group,
            running=machine.state == "started" and not machine.cordoned,
            mode="off" if "off" in modes else modes[0],
            load=loads.total(machine.id),
            over_soft=any(
                loads.of(machine.id, service.internal_port) > service.concurrency.soft_limit
                for service in services
            ),
            min_running=max(service.min_machines_running for service in services),
        )

    async def _stop(self, stop: Stop) -> bool:
        machine = self._fleet.get(stop.machine)
        if machine is None:
            return False
        await self._cordon(stop.machine)
        try:
            if machine.state != "started" or (stop.alone and self._router.loads.total(stop.machine)):
                return False
            self._router.log(machine, "info", stop.line(self._fleet.app))
            await self._close_websockets(stop.machine)
            if stop.mode == "suspend":
                await self._fleet.suspend(stop.machine)
            else:
                await self._fleet.stop(stop.machine)
        except EmulatorError as error:
            text = f"[PM07] failed to change machine state: {error.problem}"
            self._router.log(machine, "error", text)
            return False
        finally:
            self._router.draining.discard(stop.machine)
            self._router.changed.notify()
        return True

    async def _cordon(self, machine_id: str) -> None:
        self._router.draining.add(machine_id)
        self._router.changed.notify()
        await asyncio.sleep(self._options.soft_cordon_seconds)

    async def _close_websockets(self, machine_id: str) -> None:
        """Send the close frame and give clients a moment to go."""
        code = self._options.close_code
        if code is None:
            return
        told = [tunnel for tunnel in self._upstream.tunnels.get(machine_id, ()) if tunnel.send_close(code)]
        if told:
            gone = [tunnel.done for tunnel in told]
            await asyncio.wait(gone, timeout=self._options.close_grace_seconds)
