"""A server under test behind the local Fly: one machine that sleeps, and the edge that wakes it.

The machine has the server's core; the edge, Postgres, the model and the client share the others. Sleep is
awaited by state through the Machines API, as an operator's script does it.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlencode

import msgspec
import psutil

from bench.processes import Cores, Process

Asleep: TypeAlias = Literal["stopped", "suspended"]

APP = "myhealth-agents"
_PATIENCE_SECONDS = 30
_ASK: dict[Asleep, str] = {"stopped": "stop", "suspended": "suspend"}

# Checks as in agent-backend/fly.toml; the memory too, which is what a gigabyte is divided by there.
_FLY_TOML = """\
app = "{app}"
primary_region = "fra"
kill_signal = "SIGTERM"
kill_timeout = "10s"

[env]
{env}

[http_service]
internal_port = 3001
auto_stop_machines = "off"
auto_start_machines = true
min_machines_running = 0

[http_service.concurrency]
type = "requests"
soft_limit = 200

[[http_service.checks]]
method = "GET"
path = "/readyz"
interval = "15s"
timeout = "3s"
grace_period = "10s"

[[restart]]
policy = "on-failure"
retries = 1000

[[vm]]
size = "shared-cpu-1x"
memory = "512mb"
"""


class _Told(msgspec.Struct):
    """What `fly-emulator run --json` prints."""

    url: str
    api: str
    token: str
    machines: list[str]


class Cloud:
    """One app with one machine. `by_itself`: the server goes to sleep on its own, nobody tells it to."""

    def __init__(
        self,
        on: Cores,
        folder: Path,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        by_itself: bool,
    ) -> None:
        folder.mkdir()
        text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in {**env, "PORT": "3001"}.items())
        config = folder / "fly.toml"
        config.write_text(_FLY_TOML.format(app=APP, env=text), encoding="utf-8")
        self._by_itself = by_itself
        self._process = Process(
            [
                *(sys.executable, "-m", "fly_emulator", "run", str(config)),
                *("--command", shlex.join([*_pinned(on.server), *command]), "--machines", "1"),
                *("--port", "0", "--api-port", "0", "--state", str(folder / "state"), "--json"),
            ],
            os.environ,
            on.others,
            folder / "fly.log",
            stdout=True,
        )
        line = self._process.first_line()
        if not line:
            raise RuntimeError(f"the local Fly did not start:\n{self._process.output()}")
        told = msgspec.json.decode(line, type=_Told)
        self.url = told.url
        self.port = int(told.url.rpartition(":")[2])
        self._api = told.api.removeprefix("http://")
        self._bearer = {"Authorization": f"Bearer {told.token}"}
        self.machine = told.machines[0]

    def stop(self) -> None:
        """End the emulator, and with it the machine."""
        self._process.stop()

    def output(self) -> str:
        """Return the end of its log, the machine's lines among it."""
        return self._process.output()

    def fall_asleep(self, state: Asleep) -> None:
        """Return once the machine sleeps so, by itself or because it was told to."""
        if not self._by_itself:
            self.ask(state)
        version = self._call("GET", "")["instance_id"]
        query = urlencode({"state": state, "instance_id": version, "timeout": _PATIENCE_SECONDS})
        self._call("GET", f"/wait?{query}")

    def ask(self, state: Asleep) -> None:
        """Ask for a stop (SIGTERM first) or a suspend."""
        self._call("POST", f"/{_ASK[state]}")

    def kill(self) -> None:
        """SIGKILL the machine's program."""
        for child in psutil.Process(self._process.pid).children():
            with suppress(psutil.Error):
                if child.environ().get("FLY_MACHINE_ID") == self.machine:
                    child.send_signal(signal.SIGKILL)

    def _call(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._api, timeout=_PATIENCE_SECONDS + 5)
        try:
            target = f"/v1/apps/{APP}/machines/{self.machine}{path}"
            connection.request(method, target, headers=self._bearer)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {body!r}\n{self.output()}")
        return msgspec.json.decode(body, type=dict[str, Any])


def _pinned(cores: set[int]) -> list[str]:
    """Return what runs a command on these cores: the emulator, its parent, has others."""
    program = shutil.which("taskset")
    return [] if program is None else [program, "-c", ",".join(map(str, sorted(cores)))]
