"""The server decides when to sleep: only it knows of turns, and a proxy sees traffic alone.

Idle is a server without a turn, a reader and a user's request, in a database without work that nobody does.
It dozes first: readiness is off and idle connections are closed, but whatever comes is served and wakes it.
Only what is still quiet then leaves, either by ending with 0 (Fly's restart policy `on-failure` lets it
lie) or by asking the machine's own API to suspend it. Source: Fly's "Autostop/autostart" page, apps that stop
themselves; the Machines API on the socket `/.fly/api`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent_backend.telemetry import Log, metrics
from agent_backend.turns.watchdog import Clocks

if TYPE_CHECKING:
    from pathlib import Path

    from agent_backend.web.services import Services

_log = Log("sleep")

_DOZE_SECONDS = 0.3
"""What is on its way when readiness goes off arrives within this."""
_SUSPEND_SECONDS = 15.0
"""For the machine's API to answer; it answers before it freezes us."""
_FROZEN_SECONDS = 10.0
"""A suspend that was granted takes no longer; then we were not suspended, or have been."""
_LOOK_SECONDS = 0.05
_UNUSED_SECONDS = 15.0
_AGAIN_SECONDS = 5.0


class Sleeper:
    """Watches one server. `quiet`: no connection is open; `leave`: end the process if it is still quiet."""

    def __init__(self, services: Services, quiet: Callable[[], bool], leave: Callable[[], bool]) -> None:
        self._services = services
        self._settings = services.settings
        self._quiet = quiet
        self._leave = leave
        self._busy_until = time.monotonic()

    async def run(self) -> None:
        """Watch until this process has left; returns only then."""
        pause = min(1.0, self._settings.idle_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            try:
                if self._idle() and await self._fall_asleep():
                    return
            except Exception as error:  # noqa: BLE001 - a fault in it must not keep the machine awake for ever
                _log.error("sleep_broke", error=error)
                self._services.dozing = False
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _fall_asleep(self) -> bool:
        """Try; return whether this process ends."""
        if await self._work_left():
            await asyncio.sleep(min(_AGAIN_SECONDS, self._settings.idle_seconds))
            return False
        return await self._doze() and await self._sleep()

    def _idle(self) -> bool:
        """Whether nobody has needed us for long enough."""
        services, now = self._services, time.monotonic()
        hub = services.machine.hub
        if services.serving or hub.live or hub.claiming:
            self._busy_until = now
        since = max(services.last_used, self._busy_until)
        idle = self._settings.idle_seconds
        # Woken for nothing, by a stranger or a check: it must not cost a whole idle time.
        return now - since >= (idle if services.used else min(idle, _UNUSED_SECONDS))

    async def _work_left(self) -> bool:
        """Whether the database holds work for us; while it cannot be asked, nobody may sleep."""
        try:
            return await self._services.machine.work_left()
        except Exception as error:  # noqa: BLE001 - whatever it is, staying awake is right
            _log.warning("sleep_put_off", error=error)
            return True

    async def _doze(self) -> bool:
        """Leave readiness and wait a moment; return whether nobody came."""
        services = self._services
        services.dozing = True
        self._quiet()
        await asyncio.sleep(_DOZE_SECONDS)
        stays = services.dozing and self._idle() and not await self._work_left()
        services.dozing = services.dozing and stays
        return services.dozing

    async def _sleep(self) -> bool:
        """Go to sleep; return whether this process ends."""
        # What was accepted while the database was asked is a connection of ours a turn of the loop later.
        for _ in range(3):
            await asyncio.sleep(0)
        if self._settings.sleep == "suspend" and self._idle() and self._quiet() and await self._suspend():
            return False
        # Nothing is awaited from here on: no request can come between the last look and the end.
        if self._idle() and self._quiet() and self._leave():
            _log.info("falling_asleep", how="exit", idle_seconds=self._settings.idle_seconds)
            return True
        self._services.dozing = False
        return False

    async def _suspend(self) -> bool:
        """Have the machine suspended, and return True after it: whoever wakes us finds us as we were.

        False: the machine cannot be suspended, so it may as well end.
        """
        services, machine = self._services, self._services.machine
        over = services.suspending = asyncio.Event()
        machine.rest()
        _log.info("falling_asleep", how="suspend", idle_seconds=self._settings.idle_seconds)
        slept_at = time.time()
        try:
            await self._be_suspended()
        except (OSError, ValueError) as error:
            _log.warning("suspend_failed", error=error)
            services.dozing = False
            return False
        finally:
            await machine.wake("suspend over")
            services.suspending = None
            over.set()
        metrics.suspends += 1
        services.last_used = time.monotonic()
        services.used = False
        _log.info("awake", slept_seconds=round(time.time() - slept_at, 1))
        return True

    async def _be_suspended(self) -> None:
        """Ask, and return once we have been frozen and thawed. Raises OSError, or ValueError if refused.

        The freeze may come before the answer has been read: a thaw says as much as the answer.
        """
        asking = asyncio.create_task(
            _ask_for_suspend(
                self._settings.fly_api_socket, self._settings.app_name, self._settings.machine_id
            )
        )
        standing = asyncio.create_task(self._stand_still())
        try:
            await asyncio.wait([asking, standing], return_when=asyncio.FIRST_COMPLETED)
            if not standing.done():
                asking.result()
                # The proxy looks at our readiness before it hands over the request that wakes us.
                self._services.dozing = False
                await standing
        finally:
            asking.cancel()
            standing.cancel()
            await asyncio.gather(asking, standing, return_exceptions=True)
        self._services.dozing = False

    async def _stand_still(self) -> None:
        """Wait until we have been frozen and thawed, or for so long that we will not be."""
        clocks, before = Clocks(10 * _LOOK_SECONDS), time.monotonic()
        # Told now, or a freeze before the first look would not be noticed, and who woke us would wait it out.
        clocks.tick(before, time.time(), 0.0)
        while time.monotonic() - before < _FROZEN_SECONDS:
            await asyncio.sleep(_LOOK_SECONDS)
            if clocks.tick(time.monotonic(), time.time(), _LOOK_SECONDS):
                return


async def _ask_for_suspend(socket: Path, app: str, machine: str) -> None:
    """POST to the machine's own API. Raises OSError, or ValueError when it refuses."""
    async with asyncio.timeout(_SUSPEND_SECONDS):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(
                f"POST /v1/apps/{app}/machines/{machine}/suspend HTTP/1.1\r\n"
                "Host: flaps\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            await writer.drain()
            status = (await reader.readline()).split()
        finally:
            writer.close()
    if len(status) < 2 or not status[1].startswith(b"2"):
        raise ValueError("the machine's API refuses to suspend it")
