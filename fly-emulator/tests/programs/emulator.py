"""A fleet with a running and a suspended machine that says so and waits to be killed."""

import asyncio
import sys
from pathlib import Path

from fly_emulator.machine_config import Init, MachineConfig
from fly_emulator.machines.fleet import open_fleet
from fly_emulator.machines.settings import MachineSettings


async def main(directory: Path) -> None:
    settings = MachineSettings(cut_connections=False)
    fleet = await open_fleet("app", primary_region="fra", directory=directory, settings=settings)
    init = Init(exec=("/bin/sh", "-c", "sleep 600 & wait"))
    running, suspended = (fleet.create(MachineConfig(image="x", init=init)) for _ in range(2))
    await running.start()
    await suspended.start()
    await suspended.suspend()
    sys.stdout.write(f"{running.pid} {suspended.pid}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1])))
