"""Our server on the local Fly: `fly-emulator run` with two machines, as a process of its own.

Machines are reached as operators reach them, through the Machines API, and as a host can harm them, by the
ids of their processes.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import aiohttp
import psutil

from .stack import Site

APP = "myhealth-agents"
START_SECONDS = 30

_FLY_TOML = """\
app = "{app}"
primary_region = "fra"
kill_signal = "SIGTERM"
kill_timeout = "5s"

[env]
{env}

[http_service]
internal_port = 3001
force_https = false
auto_stop_machines = "{autostop}"
auto_start_machines = true
min_machines_running = 0

[http_service.concurrency]
type = "requests"
soft_limit = {soft_limit}

[[http_service.checks]]
method = "GET"
path = "/readyz"
interval = "1s"
timeout = "2s"
grace_period = "5s"

[[restart]]
policy = "on-failure"
retries = 1000

[[vm]]
size = "shared-cpu-1x"
memory = "512mb"
"""


class Flavour(NamedTuple):
    """How the machines of a cloud sleep: by themselves, or by the proxy's autostop."""

    name: str
    autostop: Literal["off", "stop", "suspend"]
    sleep: Literal["never", "exit", "suspend"]


FLAVOURS = {
    each.name: each
    for each in (
        Flavour("exit", "off", "exit"),
        Flavour("suspend", "off", "suspend"),
        Flavour("proxy-stop", "stop", "never"),
        Flavour("proxy-suspend", "suspend", "never"),
    )
}


class WallClock:
    """Moves the wall clock of servers started with `environment`; without a C compiler it does not."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self._file.write_bytes(struct.pack("d", 0.0))
        library = folder / "clock.so"
        self.environment: dict[str, str] = {}
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            return
        source = Path(__file__).resolve().parent / "clock.c"
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lm"]
        subprocess.run(command, check=True, capture_output=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._file)}

    def move(self, seconds: float) -> None:
        """Set how far the servers' wall clock is off."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            page[:8] = struct.pack("d", seconds)


class Cloud:
    """One running emulator. `log` is what it has written, line by line."""

    def __init__(
        self,
        site: Site,
        folder: Path,
        flavour: Flavour,
        *,
        machines: int = 2,
        idle_seconds: float = 0.3,
        minute: float = 0.3,
        soft_limit: int = 200,
        **env: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = WallClock(folder)
        variables = {
            **site.environment(
                LEASE_SECONDS="1",
                GROUP_COMMIT_MS="40",
                POOL_MIN="1",
                DRAIN_SECONDS="0.3",
                TOOL_CALL_SECONDS="1",
            ),
            "SLEEP": flavour.sleep,
            "IDLE_SECONDS": str(idle_seconds),
            "PORT": "3001",
            **self.clock.environment,
            **env,
        }
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in variables.items())
        config = folder / "fly.toml"
        config.write_text(
            _FLY_TOML.format(app=APP, env=text, autostop=flavour.autostop, soft_limit=soft_limit),
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "agent_backend", "serve"]
        self._command = [
            *(sys.executable, "-m", "fly_emulator", "run", str(config)),
            *("--command", " ".join(command), "--machines", str(machines)),
            *("--port", "0", "--api-port", "0", "--minute", f"{minute}s"),
            *("--state", str(folder / "state"), "--json"),
        ]
        self.log: list[str] = []
        self.url = self.api = ""

    def start(self) -> None:
        """Start and wait until the edge listens and the machines are there."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        line = self._process.stdout.readline()
        assert line, "\n".join(self.log)
        said = json.loads(line)
        self.url, self.api = said["url"], said["api"]
        self._bearer = {"Authorization": f"Bearer {said['token']}"}

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.log.append(line.rstrip("\n"))

    def count(self, words: str) -> int:
        """Return how many lines of the log contain these words."""
        return sum(words in line for line in self.log)

    def end(self) -> None:
        """End the emulator, and with it the machines."""
        for process in self.machine_processes().values():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)
        self._reader.join(timeout=10)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    # --- machines ---

    def machine_processes(self) -> dict[str, psutil.Process]:
        """Return the main process of each machine that has one, by machine id."""
        found: dict[str, psutil.Process] = {}
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                with suppress(psutil.Error):
                    machine = child.environ().get("FLY_MACHINE_ID")
                    if machine:
                        found[machine] = child
        return found

    async def call(self, method: str, path: str = "", **body: Any) -> tuple[int, Any]:
        """Ask the Machines API about this app's machines."""
        url = f"{self.api}/v1/apps/{APP}/machines{path}"
        async with (
            aiohttp.ClientSession(headers=self._bearer) as http,
            http.request(method, url, json=body or None) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def machines(self) -> list[dict[str, Any]]:
        """Return all machines as the API tells them."""
        status, machines = await self.call("GET")
        assert status == 200, machines
        return machines

    async def states(self) -> dict[str, str]:
        """Return each machine's state."""
        return {each["id"]: each["state"] for each in await self.machines()}

    async def deploy(self, release: str) -> None:
        """Put a new release on every machine, one after the other, as `fly deploy` does by default."""
        for machine in await self.machines():
            config = machine["config"]
            config["env"]["RELEASE"] = release
            async with asyncio.timeout(START_SECONDS):
                # 412: it is falling asleep or restarting at this moment.
                while (answer := await self.call("POST", f"/{machine['id']}", config=config))[0] == 412:
                    await asyncio.sleep(0.1)
            assert answer[0] == 200, answer
            await self.settled(machine["id"])

    async def settled(self, machine_id: str, seconds: float = 20) -> str:
        """Wait until a machine is in none of the states that pass."""
        async with asyncio.timeout(seconds):
            while (state := (await self.states())[machine_id]) in _PASSING:
                await asyncio.sleep(0.05)
        return state

    async def cut_connections(self, probability: float, most_bytes: int, seed: int) -> None:
        """Have the edge cut a share of the clients' connections at random bytes; 0 ends it."""
        body = {"probability": probability, "max_bytes": most_bytes, "seed": seed}
        url = f"{self.api}/_emulator/cut"
        async with (
            aiohttp.ClientSession(headers=self._bearer) as http,
            http.post(url, json=body) as response,
        ):
            assert response.status == 204, await response.text()


_PASSING = {
    *("creating", "starting", "stopping", "restarting"),
    *("suspending", "updating", "replacing", "destroying"),
}


def runs(process: psutil.Process) -> bool:
    """Say whether a process is there and not a zombie."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def signal_process(process: psutil.Process, number: int) -> bool:
    """Send a signal; False when it has gone."""
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True
