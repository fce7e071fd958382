"""Machines as JSON, in the form of the Machines API.

Source: superfly/fly-go `machine_types.go`; the quirk of `autostop` stands in its MachineService.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from fly_emulator.errors import StateError
from fly_emulator.machine_config import Autostop, MachineConfig, Service, duration_seconds
from fly_emulator.machines.machine import Machine
from fly_emulator.machines.record import Version

_SIZE: Final = re.compile(r"^(shared-cpu|performance)-(\d+)x$")
_MEMORY: Final = {"shared": 256, "performance": 2048}
_DURATIONS: Final = ("interval", "timeout", "grace_period")
_REFERENCE: Final = re.compile(
    r"^(?:(?P<registry>[^/]*[.:][^/]*)/)?(?P<repository>[^:@]*)(?::(?P<tag>[^@]*))?(?:@(?P<digest>.*))?$"
)


def decode_config(document: object) -> MachineConfig:
    """Read a request's `config`. Raises StateError (400) naming what is wrong."""
    if not isinstance(document, dict):
        raise StateError("invalid_argument: config is required", status=400)
    cleaned = _without_nulls(document)
    try:
        _normalise(cleaned)
        config = msgspec.convert(cleaned, MachineConfig)
        _check_durations(config)
    except (msgspec.ValidationError, ValueError, TypeError, AttributeError) as error:
        raise StateError(f"invalid_argument: invalid machine config: {error}", status=400) from error
    return config


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _normalise(config: dict[str, Any]) -> None:
    """Turn every form the API accepts into the one our structs have."""
    for service in config.get("services", []):
        if "autostop" in service:
            service["autostop"] = _autostop(service["autostop"])
        concurrency = service.get("concurrency", {})
        if not concurrency.get("type"):
            concurrency.pop("type", None)
        for limit in ("soft_limit", "hard_limit"):
            if concurrency.get(limit) == 0:
                del concurrency[limit]
        for check in service.get("checks", []):
            _normalise_check(check)
    for check in config.get("checks", {}).values():
        _normalise_check(check)
    _nanoseconds(config.get("stop_config", {}), "timeout")
    restart = config.get("restart", {})
    if restart.get("policy") in ("", "on-fail"):
        restart["policy"] = "on-failure"
    if size := config.pop("size", None):
        config.setdefault("guest", _guest(size))


def _normalise_check(check: dict[str, Any]) -> None:
    for name in _DURATIONS:
        _nanoseconds(check, name)
    if isinstance(check.get("headers"), list):
        check["headers"] = {header["name"]: header["values"] for header in check["headers"]}
    if "method" in check:
        check["method"] = check["method"].upper()


def _nanoseconds(part: dict[str, Any], name: str) -> None:
    """Durations may come as integers: nanoseconds, Go's own form."""
    if isinstance(part.get(name), int):
        part[name] = f"{part[name]}ns"


def _autostop(value: object) -> Autostop:
    match value:
        case True | "stop":
            return "stop"
        case False | "off":
            return "off"
        case "suspend":
            return "suspend"
        case _:
            raise ValueError(f"autostop: {value!r} is none of off, stop, suspend")


def _guest(size: str) -> dict[str, Any]:
    found = _SIZE.match(size)
    if found is None:
        raise ValueError(f"size: '{size}' is an invalid machine size")
    kind, cpus = found[1].removesuffix("-cpu"), int(found[2])
    return {"cpu_kind": kind, "cpus": cpus, "memory_mb": cpus * _MEMORY[kind]}


def _check_durations(config: MachineConfig) -> None:
    checks = [check for service in config.services for check in service.checks]
    for check in (*checks, *config.checks.values()):
        for name in _DURATIONS:
            duration_seconds(getattr(check, name))
    duration_seconds(config.stop_config.timeout)


def encode_config(config: MachineConfig) -> dict[str, Any]:
    """Write a configuration as the API returns it."""
    document: dict[str, Any] = {"init": {}, **msgspec.to_builtins(config)}
    document["image"] = config.image
    document["guest"] = {
        "cpu_kind": config.guest.cpu_kind,
        "cpus": config.guest.cpus,
        "memory_mb": config.guest.memory_mb,
    }
    document["restart"] = {"policy": config.restart.policy, "max_retries": config.restart.max_retries}
    if config.services:
        services = zip(document["services"], config.services, strict=True)
        document["services"] = [_encode_service(*pair) for pair in services]
    for check in document.get("checks", {}).values():
        _encode_headers(check)
    return document


def _encode_service(document: dict[str, Any], service: Service) -> dict[str, Any]:
    autostop = {"off": False, "stop": True}.get(service.autostop, service.autostop)
    for check in document.get("checks", []):
        _encode_headers(check)
    return {
        **document,
        "protocol": service.protocol,
        "autostop": autostop,
        "autostart": service.autostart,
        "min_machines_running": service.min_machines_running,
    }


def _encode_headers(check: dict[str, Any]) -> None:
    if "headers" in check:
        check["headers"] = [
            {"name": name, "values": list(values)} for name, values in check["headers"].items()
        ]


def encode_machine(machine: Machine, *, nonce: str | None = None) -> dict[str, Any]:
    """Write a machine as the API returns it."""
    record = machine.record
    document: dict[str, Any] = {
        **encode_summary(machine),
        "config": encode_config(record.config),
        "events": msgspec.to_builtins(record.events),
        "checks": msgspec.to_builtins(machine.check_results()),
    }
    if nonce is not None:
        document["nonce"] = nonce
    return document


def encode_summary(machine: Machine) -> dict[str, Any]:
    """Write what `summary=true` leaves of a machine."""
    record = machine.record
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "region": record.region,
        "image_ref": image_ref(record.config.image, machine.image.digest),
        "instance_id": record.instance_id,
        "version": record.instance_id,
        "private_ip": record.private_ip,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "cordoned": record.cordoned,
        "host_status": "ok",
    }


def encode_version(version: Version) -> dict[str, Any]:
    """Write an entry of `versions`."""
    config = encode_config(version.config)
    return {"version": version.id, "created_at": version.created_at, "user_config": config}


def image_ref(reference: str, digest: str = "") -> dict[str, Any]:
    """Take an image reference apart; without a registry it is Docker's. `digest` is what is really run."""
    found = _REFERENCE.match(reference)
    parts = {} if found is None else {key: part for key, part in found.groupdict().items() if part}
    ran = {"digest": digest} if digest else {}
    return {"registry": "registry-1.docker.io", **parts, **ran} if parts else {}
