"""`fly-emulator run`: machines, edge and Machines API of one fly.toml, until a signal ends them.

Decisions go to stderr, one line each in the form of `fly logs`. With `--json` one line on stdout says where
everything is, once it listens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from fly_emulator.clock import timestamp
from fly_emulator.config.fly_toml import AppConfig
from fly_emulator.control import control_routes
from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy import Edge
from fly_emulator.errors import EmulatorError, StateError
from fly_emulator.log import Log
from fly_emulator.machine_config import MachineConfig
from fly_emulator.machines.api import ApiSettings, MachineSockets, create_api
from fly_emulator.machines.environment import Image
from fly_emulator.machines.fleet import Fleet, open_fleet
from fly_emulator.machines.machine import Machine
from fly_emulator.machines.settings import MachineSettings
from fly_emulator.timescale import TimeScale
from fly_emulator.token import new_token

HOST = "127.0.0.1"
DEFAULT_REGION = "fra"


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. Ports: 0 chooses a free one."""

    command: tuple[str, ...]
    """Stands for the image's command; empty: `[processes]` must name one."""
    port: int = 8080
    https_port: int | None = None
    api_port: int = 4280
    machines: int = 2
    """Of each process group with services, as the first deploy at Fly makes (one with --ha=false)."""
    minute_seconds: float = 60.0
    state: Path = Path(".fly-emulator")
    env: dict[str, str] = {}
    """Wins over [env]."""
    secrets: tuple[str, ...] = ()
    """Variables of the emulator's own environment that machines get as secrets."""
    asleep: bool = False
    """Leave the machines stopped: the first request wakes one."""
    json: bool = False
    edge: EdgeOptions = EdgeOptions()


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is, as `--json` prints it."""

    app: str
    url: str
    https_url: str | None
    api: str
    token: str
    machines: list[str]


def run(config: AppConfig, options: RunOptions, environ: Mapping[str, str] = os.environ) -> int:
    """Run until SIGINT or SIGTERM; return 0. Raises EmulatorError when it cannot start."""
    secrets = _secrets(options.secrets, environ)
    return asyncio.run(_run(config, options, secrets))


def _secrets(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in names if name not in environ]
    if missing:
        raise EmulatorError(
            f"--secret {missing[0]}: there is no such variable in the environment",
            hint=f"export {missing[0]} first; values are never given on the command line",
        )
    return {name: environ[name] for name in names}


async def _run(config: AppConfig, options: RunOptions, secrets: dict[str, str]) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        fleet = await _open(config, options, secrets)
        stack.push_async_callback(fleet.close)
        edge = Edge(
            fleet,
            host=HOST,
            http_port=options.port,
            https_port=options.https_port,
            options=msgspec.structs.replace(options.edge, time_scale=TimeScale(options.minute_seconds)),
            log=_log_of_proxy,
            state_dir=options.state,
        )
        token = new_token(options.state)
        api = await _serve_api(fleet, edge, options.api_port, token, stack)
        _arrange(fleet, config, options)
        await edge.start()
        stack.push_async_callback(edge.stop)
        _tell(
            config,
            options,
            Addresses(
                app=config.app,
                url=edge.http_url,
                https_url=edge.https_url,
                api=api,
                token=token,
                machines=[machine.id for machine in fleet.machines()],
            ),
        )
        if not options.asleep:
            await _unless(stopped, _start_all(fleet))
        await stopped.wait()
    return 0


async def _open(config: AppConfig, options: RunOptions, secrets: dict[str, str]) -> Fleet:
    options.state.mkdir(parents=True, exist_ok=True)
    return await open_fleet(
        config.app,
        primary_region=config.primary_region or DEFAULT_REGION,
        directory=options.state,
        settings=MachineSettings(image=Image(cmd=options.command), secrets=secrets),
        log=Log(_write),
    )


def _arrange(fleet: Fleet, config: AppConfig, options: RunOptions) -> None:
    """Make the machines of each process group, or give those of the last run the file's configuration."""
    for group, described in config.machines().items():
        wanted = _adapted(described, config.app, options)
        there = [machine for machine in fleet.machines() if machine.config.process_group == group]
        for machine in there:
            machine.record.config = wanted
        for _ in range(len(there), options.machines if wanted.services else 1):
            fleet.create(wanted)


def _adapted(config: MachineConfig, app: str, options: RunOptions) -> MachineConfig:
    """Apply what the command line says; without TLS there is nothing to force HTTPS to."""
    services = config.services
    if options.https_port is None:
        services = tuple(
            msgspec.structs.replace(
                service,
                ports=tuple(msgspec.structs.replace(port, force_https=False) for port in service.ports),
            )
            for service in services
        )
    # Every image stands for --command; the API wants a machine to have one.
    image = config.image or f"registry.fly.io/{app}:local"
    env = {**config.env, **options.env}
    return msgspec.structs.replace(config, image=image, env=env, services=services)


async def _start_all(fleet: Fleet) -> None:
    """Start every machine, as a first deploy does. Raises EmulatorError when one dies at start."""
    await asyncio.gather(*(_start(fleet, machine) for machine in fleet.machines()))


async def _start(fleet: Fleet, machine: Machine) -> None:
    await fleet.start(machine.id, source="user")
    while not all(machine.healthy(service.internal_port) for service in machine.config.services):
        ticket = fleet.changed.ticket
        if machine.state in ("restarting", "stopped", "failed"):
            if machine.state == "stopped" and not _failed(machine):
                return  # it did what it had to do
            said = "\n".join(f"  {line}" for line in machine.last_output)
            raise EmulatorError(
                f"machine {machine.id} died at start; its last output:\n{said}",
                hint="run the command by hand with the same environment, or look into "
                "logs/ of the state directory",
            )
        await ticket.wait()


def _failed(machine: Machine) -> bool:
    """Say whether its process ended with anything but 0 the last time."""
    exits = [each.request.exit_event for each in machine.record.events if each.request is not None]
    last = next((each for each in exits if each is not None), None)
    return last is not None and last.exit_code != 0


async def _unless(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless a signal comes before it is done."""
    doing = asyncio.create_task(work)
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not doing.done():
            doing.cancel()
    if doing.done():
        try:
            doing.result()
        except StateError as error:
            raise EmulatorError(error.problem) from error


async def _serve_api(fleet: Fleet, edge: Edge, port: int, token: str, stack: AsyncExitStack) -> str:
    """Serve the Machines API for all on a port and for each machine on a socket of its own."""
    fleets = {fleet.app: fleet}
    sockets = MachineSockets(fleet, create_api(fleets, trusted=True))
    await sockets.start()
    stack.push_async_callback(sockets.close)
    # It can run commands: not for whoever else has an account on this machine.
    api = create_api(fleets, ApiSettings(token=token))
    api.add_routes(control_routes(lambda _: edge))
    runner = web.AppRunner(api, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError as error:
        raise EmulatorError(
            f"the Machines API cannot listen on port {port}: {error.strerror}",
            hint="choose another with --api-port; 0 takes a free one",
        ) from error
    return f"http://{HOST}:{runner.addresses[0][1]}"


def _tell(config: AppConfig, options: RunOptions, addresses: Addresses) -> None:
    if options.json:
        sys.stdout.write(msgspec.json.encode(addresses).decode() + "\n")
    else:
        sys.stdout.write(
            f"{config.app} at {addresses.url}"
            + (f" and {addresses.https_url}" if addresses.https_url else "")
            + f"\nMachines API at {addresses.api}, token {addresses.token}, "
            f"{len(addresses.machines)} machines\n"
        )
    sys.stdout.flush()


def _log_of_proxy(message: str) -> None:
    _write(f"{timestamp()} {message}")


def _write(line: str) -> None:
    # Whoever read our log may be gone; the machines must be ended in order all the same.
    with suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
