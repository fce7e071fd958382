"""What a machine's process is given: its command, its environment, and ports of its own.

All machines share one host, so each internal port of a machine is a free loopback port here. PORT, any
variable whose value is an internal port, and any word of the command that is one or ends in `:N` or `=N`
carry the machine's own port instead. On Fly every machine has the internal port itself.
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from fly_emulator.errors import EmulatorError
from fly_emulator.machine_config import MachineConfig

HOST = "127.0.0.1"
_RANGE = (20_000, 32_000)
"""Below the ports that kernels give to outgoing connections (Linux 32768, macOS 49152)."""
_TRIES = 200
_WORD = re.compile(r"^(|.*[:=])(\d{1,5})$", re.DOTALL)
MINIMAL = ("PATH", "HOME", "LANG")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for a container image: the command it runs, where, and the variables it sets."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    cwd: str | None = None
    env: dict[str, str] = {}
    digest: str = ""
    """Of what is really run, as the API shows it; empty where images have none."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is told about itself."""

    app: str
    machine_id: str
    region: str
    primary_region: str
    private_ip: str
    version: str
    api_socket: Path | None = None


def internal_ports(config: MachineConfig) -> tuple[int, ...]:
    """Return every port the machine listens on, services first, each once."""
    ports: list[int] = []
    for service in config.services:
        ports += [service.internal_port, *(check.port for check in service.checks if check.port)]
    ports += [check.port for check in config.checks.values() if check.port]
    if config.metrics is not None:
        ports.append(config.metrics.port)
    return tuple(dict.fromkeys(ports))


def assign_ports(internal: Iterable[int], before: Mapping[int, int]) -> dict[int, int]:
    """Give each internal port a free port of this host: the one it had before if that is free."""
    given: dict[int, int] = {}
    for port in internal:
        old = before.get(port)
        given[port] = old if old is not None and is_free(old) else free_port(taken=set(given.values()))
    return given


def free_port(taken: set[int]) -> int:
    """Find a port nobody listens on. Raises EmulatorError."""
    for _ in range(_TRIES):
        port = random.randrange(*_RANGE)  # noqa: S311 - a port is no secret
        if port not in taken and is_free(port):
            return port
    raise EmulatorError(f"no free port between {_RANGE[0]} and {_RANGE[1]}", hint="stop what listens there")


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def command(config: MachineConfig, image: Image, ports: Mapping[int, int]) -> list[str]:
    """Return the argument list; `exec` replaces everything. Raises EmulatorError when there is none.

    As with containers, an entrypoint in the config drops the image's command.
    """
    init = config.init
    if init.exec:
        words: Sequence[str] = init.exec
    elif init.entrypoint is not None:
        words = (*init.entrypoint, *(init.cmd or ()))
    else:
        words = (*image.entrypoint, *(image.cmd if init.cmd is None else init.cmd))
    if not words:
        raise EmulatorError(
            "the machine has no command",
            hint="name one in fly.toml ([processes]) or give the image's command to the emulator",
        )
    return [_own_word(word, ports) for word in words]


def _own_word(word: str, ports: Mapping[int, int]) -> str:
    found = _WORD.match(word)
    port = None if found is None else ports.get(int(found[2]))
    return word if found is None or port is None else f"{found[1]}{port}"


def environment(
    config: MachineConfig,
    identity: Identity,
    ports: Mapping[int, int],
    *,
    image: Image,
    passed: Mapping[str, str],
    secrets: Mapping[str, str],
) -> dict[str, str]:
    """Return the variables: the host's few, the image's, those passed on, the config's, secrets, Fly's."""
    env = {name: os.environ[name] for name in MINIMAL if name in os.environ}
    given = {**image.env, **passed, **config.env, **secrets}
    own = {str(port): str(mine) for port, mine in ports.items()}
    env |= {name: own.get(value, value) for name, value in given.items()}
    if "PORT" not in env and config.services:
        env["PORT"] = own[str(config.services[0].internal_port)]
    return env | fly_variables(config, identity)


def fly_variables(config: MachineConfig, identity: Identity) -> dict[str, str]:
    """Return Fly's variables. FLY_PUBLIC_IP is absent: nothing here has one.

    Source: superfly/docs `machines/runtime-environment`.
    """
    env = {
        "FLY_APP_NAME": identity.app,
        "FLY_MACHINE_ID": identity.machine_id,
        "FLY_ALLOC_ID": identity.machine_id,
        "FLY_REGION": identity.region,
        "FLY_PRIVATE_IP": identity.private_ip,
        "FLY_IMAGE_REF": config.image,
        "FLY_MACHINE_VERSION": identity.version,
        "FLY_PROCESS_GROUP": config.process_group,
        "FLY_VM_MEMORY_MB": str(config.guest.memory_mb),
        "PRIMARY_REGION": identity.primary_region,
    }
    if identity.api_socket is not None:
        env["FLY_API_SOCKET"] = str(identity.api_socket)
    return env
