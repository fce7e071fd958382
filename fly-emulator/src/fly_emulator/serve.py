"""`fly-emulator serve`: a whole little Fly for flyctl, until a signal ends it.

One port answers for api.fly.io (GraphQL, releases, logs) and for api.machines.dev. `--json` prints one line
that says where, and the variables that point flyctl at it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
from aiohttp import web

from fly_emulator.cloud.api import create_cloud_api
from fly_emulator.cloud.running import HOST, Cloud, CloudSettings
from fly_emulator.control import control_routes
from fly_emulator.edge.options import EdgeOptions
from fly_emulator.edge.proxy import Edge
from fly_emulator.errors import EmulatorError
from fly_emulator.machines.api import ApiSettings
from fly_emulator.machines.settings import MachineSettings
from fly_emulator.timescale import TimeScale
from fly_emulator.token import new_token


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. Ports: 0 chooses a free one."""

    port: int = 4280
    region: str = "fra"
    minute_seconds: float = 60.0
    state: Path = Path(".fly-emulator")
    env: dict[str, str] = {}
    """Variables every machine gets; the config's win over them."""
    addresses: bool = True
    json: bool = False


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is, as `--json` prints it."""

    api: str
    token: str
    env: dict[str, str]
    """For flyctl."""
    apps: dict[str, str]
    """Where each app's edge listens."""


def serve(options: ServeOptions) -> int:
    """Run until SIGINT or SIGTERM; return 0. Raises EmulatorError when it cannot start."""
    return asyncio.run(_serve(options))


async def _serve(options: ServeOptions) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        scale = TimeScale(options.minute_seconds)
        settings = CloudSettings(
            region=options.region,
            machines=MachineSettings(
                passed=options.env, restart_backoff=scale.minutes(MachineSettings().restart_backoff / 60)
            ),
            addresses=options.addresses,
            edge=EdgeOptions(time_scale=scale),
        )
        cloud = Cloud(options.state, settings, _write)
        stack.push_async_callback(cloud.close)
        await cloud.open()
        token = new_token(options.state)
        url = await _listen(cloud, options.port, token, stack)
        env = flyctl_env(url, token, options.minute_seconds)
        _tell(options, Where(api=url, token=token, env=env, apps=dict(cloud.urls())))
        await stopped.wait()
    return 0


def flyctl_env(url: str, token: str, minute_seconds: float = 60.0) -> dict[str, str]:
    """Return the variables with which flyctl talks to the emulator and to nobody else.

    FLY_NO_UPDATE_CHECK and the others turn off what flyctl does beside its work. Feature flags have no
    switch: they meet a proxy that refuses them (Go asks none for loopback). Source: superfly/flyctl
    `internal/config/config.go`, `internal/update`, `internal/incidents`, `internal/launchdarkly`.
    FLY_EMULATOR_MINUTE is for the stand-in (`fly_emulator.flyctl`) alone.
    """
    return {
        "FLY_API_BASE_URL": url,
        "FLY_FLAPS_BASE_URL": url,
        "FLY_UIEX_BASE_URL": url,
        "FLY_METRICS_BASE_URL": url,
        "FLY_SYNTHETICS_BASE_URL": url,
        "FLY_API_TOKEN": token,
        "FLY_NO_UPDATE_CHECK": "1",
        "FLY_NO_INCIDENTS_CHECK": "1",
        "FLY_SEND_METRICS": "0",
        "FLY_SYNTHETICS_AGENT": "0",
        "FLY_TRACE_COLLECTOR_URL": url.removeprefix("http://"),
        "HTTPS_PROXY": url,
        "FLY_EMULATOR_MINUTE": f"{minute_seconds:g}",
    }


async def _listen(cloud: Cloud, port: int, token: str, stack: AsyncExitStack) -> str:
    api = create_cloud_api(cloud, ApiSettings(token=token))
    api.add_routes(control_routes(lambda request: _edge(cloud, request), "/_emulator/apps/{app}"))
    runner = web.AppRunner(api, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError as error:
        raise EmulatorError(
            f"the API cannot listen on port {port}: {error.strerror}",
            hint="choose another with --port; 0 takes a free one",
        ) from error
    return f"http://{HOST}:{runner.addresses[0][1]}"


def _edge(cloud: Cloud, request: web.Request) -> Edge:
    return cloud.app(request.match_info["app"]).edge


def _tell(options: ServeOptions, where: Where) -> None:
    if options.json:
        sys.stdout.write(msgspec.json.encode(where).decode() + "\n")
    else:
        # A proxy that refuses is for flyctl alone, not for a shell in which there is also git.
        shown = {name: value for name, value in where.env.items() if name != "HTTPS_PROXY"}
        sys.stdout.write("".join(f"export {name}={value}\n" for name, value in shown.items()))
        sys.stdout.write(f"# HTTPS_PROXY={where.api} before a flyctl stops its question for feature flags\n")
        sys.stdout.write("".join(f"# {name} at {url}\n" for name, url in where.apps.items()))
    sys.stdout.flush()


def _write(line: str) -> None:
    # Whoever read our log may be gone; the machines must be ended in order all the same.
    with suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
