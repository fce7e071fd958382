"""A machine's configuration in the Machines API's form: what flyctl makes of fly.toml, and the proxy reads.

Field names are the API's (superfly/fly-go `machine_types.go`). Durations are strings such as "10s" on the
wire; `duration_seconds` reads them. Unknown fields of a request are kept out, as the API does.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Autostop: TypeAlias = Literal["off", "stop", "suspend"]


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A port of the edge, or a range of them, and what is done with its connections."""

    port: int | None = None
    start_port: int | None = None
    end_port: int | None = None
    handlers: tuple[str, ...] = ()
    """http | tls | pg_tls | proxy_proto | edge_http"""
    force_https: bool = False
    http_options: dict[str, Any] = {}
    tls_options: dict[str, Any] = {}


class Concurrency(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much load a machine takes. `hard_limit` None: unlimited."""

    type: Literal["connections", "requests"] = "connections"
    soft_limit: int = 20
    hard_limit: int | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A health check: of a service (gates routing) or of the machine (`port` is set)."""

    type: Literal["http", "tcp"] = "http"
    port: int | None = None
    interval: str = "10s"
    timeout: str = "2s"
    grace_period: str = "1s"
    method: str = "GET"
    path: str = "/"
    protocol: Literal["http", "https"] = "http"
    tls_skip_verify: bool = False
    headers: dict[str, list[str]] = {}


class Service(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the edge offers of a machine."""

    protocol: Literal["tcp", "udp"] = "tcp"
    internal_port: int
    ports: tuple[Port, ...] = ()
    autostop: Autostop = "off"
    """On the wire also a boolean: true is stop, false is off."""
    autostart: bool = True
    min_machines_running: int = 0
    concurrency: Concurrency = Concurrency()
    checks: tuple[Check, ...] = ()


class Guest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The size of the machine."""

    cpu_kind: Literal["shared", "performance"] = "shared"
    cpus: int = 1
    memory_mb: int = 256


class Restart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happens when the process ends by itself."""

    policy: Literal["no", "always", "on-failure"] = "on-failure"
    max_retries: int = 10


class StopConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How it is stopped: a signal, and SIGKILL after the timeout (at most 300 s)."""

    signal: str = "SIGINT"
    timeout: str = "5s"


class Init(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is run: `exec` replaces the image's entrypoint and command."""

    exec: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    swap_size_mb: int | None = None


class Metrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where Prometheus series are scraped."""

    port: int
    path: str = "/metrics"


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a machine is made of."""

    image: str = ""
    init: Init = Init()
    env: dict[str, str] = {}
    guest: Guest = Guest()
    restart: Restart = Restart()
    services: tuple[Service, ...] = ()
    checks: dict[str, Check] = {}
    metrics: Metrics | None = None
    stop_config: StopConfig = StopConfig()
    metadata: dict[str, str] = {}
    """fly_process_group, fly_platform_version, fly_release_id, ..."""
    mounts: tuple[dict[str, Any], ...] = ()
    statics: tuple[dict[str, Any], ...] = ()
    auto_destroy: bool = False
    schedule: str | None = None

    @property
    def process_group(self) -> str:
        """The group fly.toml names; `app` where it names none."""
        return self.metadata.get("fly_process_group", "app")


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_seconds(text: str) -> float:
    """Read a Go duration such as "1m30s" as seconds. Raises ValueError.

    Source: Go's time.ParseDuration.
    """
    rest, total = text.strip(), 0.0
    if not rest:
        raise ValueError("a duration such as 10s or 1m30s")
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        number, tail = rest[:digits], rest[digits:]
        unit = next((u for u in ("ns", "us", "µs", "ms", "s", "m", "h") if tail.startswith(u)), None)
        if not number or number.count(".") > 1 or unit is None:
            raise ValueError(f"{text!r} is not a duration such as 10s or 1m30s")
        total += float(number) * _UNITS[unit]
        rest = tail[len(unit) :]
    return total
