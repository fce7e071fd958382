"""The image: built from the Dockerfile as a deploy builds it, then run with nothing of Fly around it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import aiohttp
import pytest

from .client import Client, say, take
from .ports import free_port
from .stack import Site

ROOT = Path(__file__).resolve().parent.parent
BASE = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "agent-backend/Dockerfile").read_text(), re.MULTILINE)[0]
IMAGE = "localhost/myhealth/agent-backend:test"
CERTIFICATES = "/etc/ssl/certs"
MEMORY_MB = 512
START_SECONDS = 30
# What a process inside may open and start: podman's own defaults are more than a nested host allows.
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
# As a host would run it that trusts it with nothing.
CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", *LIMITS)


def _missing() -> str | None:
    """Return why the image cannot be built or run here; None when it can."""
    tools = [name for name in ("buildah", "podman", "runc") if shutil.which(name) is None]
    if tools:
        return f"{', '.join(tools)} is not installed (.ci/run installs it)"
    if os.geteuid() != 0:
        return "containers are built and run as root here"
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode != 0:
        return f"there is no {BASE}: `podman pull` it, or `python scripts/base_image.py` makes a stand-in"
    return None


@pytest.fixture(scope="module")
def image() -> str:
    """Build the image; test processes side by side build it once, from the layers of the last time."""
    if reason := _missing():
        pytest.skip(reason)
    with (ROOT / "agent-backend/Dockerfile").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            "buildah",
            "bud",
            "--layers",
            "--format=docker",
            "--isolation=chroot",
            "--pull=never",
            "--network=host",
            f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
            f"--tag={IMAGE}",
            f"--file={ROOT / 'agent-backend/Dockerfile'}",
            str(ROOT),
        )
    return IMAGE


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def _inside(image: str, *command: str) -> str:
    return _run("podman", "run", "--rm", "--runtime=runc", "--no-healthcheck", *CONFINED, image, *command)


def test_it_holds_the_server_and_nothing_else(image: str) -> None:
    [about] = json.loads(_run("podman", "image", "inspect", image))
    config: dict[str, Any] = about["Config"]
    assert config["User"] == "10001:10001"
    assert config["Cmd"] == ["agent-backend", "serve"], "exec form: no shell between the host and the server"
    assert not config.get("Entrypoint")
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert about["HealthCheck" if "HealthCheck" in about else "Healthcheck"]["Test"][0] == "CMD"
    names = {entry.partition("=")[0] for entry in config["Env"]}
    assert names <= {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}, "no setting, no secret"
    print(f"image: {about['Size'] / 1e6:.0f} MB with its base")

    packages = json.loads(
        _inside(
            image,
            "python",
            "-c",
            "import importlib.metadata as m, json\n"
            "print(json.dumps(sorted(d.name.lower() for d in m.distributions())))",
        )
    )
    assert "agent-backend" in packages
    for other in ("anthropic-emulator", "fly-emulator", "myhealth-cli", "pytest", "uv", "pip"):
        assert other not in packages
    found = _inside(
        image,
        "python",
        "-c",
        "import agent_backend, pathlib, sys; root = pathlib.Path(agent_backend.__file__).parent\n"
        "print(*(len(list(root.rglob(each))) for each in ('*.py', '*.pyc', 'migrations/*.sql')))\n"
        "print([p.name for p in pathlib.Path('/').iterdir() if p.name in ('src', '.git', 'acceptance')])",
    ).splitlines()
    sources, compiled, migrations = map(int, found[0].split())
    assert sources == compiled, "every module is compiled"
    assert migrations == len(list((ROOT / "agent-backend/migrations").glob("*.sql")))
    assert found[1] == "[]"


_LOOSE = """
import os, stat
for folder, folders, files in os.walk("/"):
    if folder in ("/proc", "/sys", "/dev"):
        folders[:] = []
        continue
    for path in (os.path.join(folder, each) for each in folders + files):
        found = os.lstat(path)
        privileged = stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000
        ours = found.st_uid == 10001 or found.st_gid == 10001
        # A folder for everybody's own files (sticky) is no way to change another's.
        open_to_all = found.st_mode & 0o002 and not stat.S_ISLNK(found.st_mode) and not found.st_mode & 0o1000
        if privileged or ours or open_to_all:
            print(path)
"""


def test_nothing_in_it_can_be_changed_or_makes_root(image: str) -> None:
    """Also on a host that does not run it read-only and without new privileges, as Fly's."""
    assert _inside(image, "python", "-c", _LOOSE) == ""


def test_a_secret_that_lies_beside_the_sources_does_not_come_along(tmp_path: Path) -> None:
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("buildah is not installed, or this is not root (.ci/run installs it)")
    context, out = tmp_path / "context", tmp_path / "out"
    planted = [f"agent-backend/src/agent_backend/{name}" for name in (".env", ".env.staging", "staging.env")]
    planted += ["agent-backend/agents/fly.env", "agent-backend/migrations/ca.key", ".env", "secrets.txt"]
    wanted = ["agent-backend/src/agent_backend/cli.py", "agent-backend/migrations/1.sql", "uv.lock"]
    for each in (*planted, *wanted):
        (context / each).parent.mkdir(parents=True, exist_ok=True)
        (context / each).write_text("x", "utf-8")
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch\nCOPY . /\n", "utf-8")
    _run(
        *("buildah", "bud", "--quiet", "--isolation=chroot", "--pull=never", f"--file={file}"),
        *(f"--ignorefile={ROOT / '.dockerignore'}", f"--output=type=local,dest={out}", str(context)),
    )
    assert sorted(str(each.relative_to(out)) for each in out.rglob("*") if each.is_file()) == sorted(wanted)


@contextmanager
def _container(image: str, site: Site, keys: Path, port: int, metrics: int) -> Generator[str]:
    """Run the server in a container of 512 MB on the host's network; yield its name."""
    name = f"myhealth-image-{uuid4().hex[:8]}"
    env = site.environment(
        PORT=str(port), METRICS_PORT=str(metrics), MACHINE_ID=name, DEV_KEY_DIR="/keys", HOST="127.0.0.1"
    )
    given = {key: value for key, value in env.items() if key not in ("PATH", "HOME", "LANG", "AGENTS_DIR")}
    volumes = [f"--volume={keys}:/keys:ro"]
    if folders := parse_qs(urlsplit(site.database_url).query).get("host"):
        # The socket alone: its folder is its owner's, and the container runs as nobody in particular.
        [socket] = Path(folders[0]).glob(".s.PGSQL.*[0-9]")
        volumes.append(f"--volume={socket}:/run/postgresql/{socket.name}")
        given["DATABASE_URL"] = site.database_url.replace(folders[0], "/run/postgresql")
    _run(
        "podman",
        "run",
        "--detach",
        f"--name={name}",
        "--runtime=runc",
        "--no-healthcheck",
        "--network=host",
        f"--memory={MEMORY_MB}m",
        f"--memory-swap={MEMORY_MB}m",
        *CONFINED,
        *volumes,
        *(f"--env={key}={value}" for key, value in given.items()),
        image,
    )
    try:
        yield name
    finally:
        _run("podman", "rm", "--force", "--time=5", name)


def _logs(name: str) -> str:
    done = subprocess.run(["podman", "logs", name], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


async def _ready(http: aiohttp.ClientSession, url: str, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            async with http.get(f"{url}/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        if time.monotonic() > deadline:
            pytest.fail(f"not ready:\n{_logs(name)}")
        await asyncio.sleep(0.02)


async def test_it_serves_a_turn_on_any_host_under_512_mb(
    image: str, site: Site, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "jwks.json").write_text(site.jwks(), encoding="utf-8")
    keys.chmod(0o755)
    port, metrics = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with _container(image, site, keys, port, metrics) as name:
        await _ready(http, url, name)
        async with aiohttp.ClientSession(headers=site.headers("image")) as session:
            client = Client(session, url)
            events = await take(client.answer(await client.new_session(), say(tokens=20)))
        assert events[-1].type == "RUN_FINISHED"
        async with http.get(f"http://127.0.0.1:{metrics}/metrics") as response:
            samples = await response.text()
        ready = next(line for line in samples.splitlines() if 'phase="ready"' in line)
        print(f"boot to ready in the image: {float(ready.split()[-1]) * 1000:.0f} ms")
        assert _run("podman", "exec", name, "agent-backend", "healthcheck") == "/livez answers 200\n"
        assert _run("podman", "exec", name, "python", "-c", "import os; print(os.getuid())") == "10001\n"
        _run("podman", "stop", "--time=10", name)
        [state] = json.loads(_run("podman", "container", "inspect", name))
        assert state["State"]["ExitCode"] == 0, "SIGTERM is a clean end"
        assert not state["State"]["OOMKilled"]
