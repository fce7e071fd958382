"""What flyctl prints as JSON: its Go structs, filled with what its queries ask for and zero values else.

Sources: superfly/fly-go `types.go`, `machine_types.go`; flyctl `internal/command/status/machines.go`,
`logs/logs.go`; held against flyctl itself by `tests/test_flyctl_alike.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

_GROUP: Final = "fly_process_group"
_EPHEMERAL: Final = ("fly_app_release_command", "fly_app_console")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def is_active(machine: dict[str, Any]) -> bool:
    """Say whether a machine is there and no release command's."""
    gone = machine["state"] in {"destroyed", "destroying"}
    return not gone and machine["config"].get("metadata", {}).get(_GROUP) not in _EPHEMERAL


def is_platform(machine: dict[str, Any]) -> bool:
    """Say whether `deploy` looks after it."""
    return machine["config"].get("metadata", {}).get("fly_platform_version") == "v2"


def machine(found: dict[str, Any]) -> dict[str, Any]:
    """Return a machine of the API as flyctl shows it."""
    config = {"init": {}, **found.get("config", {})}
    if services := config.get("services"):
        config["services"] = [{"force_instance_key": None, **each} for each in services]
    return {**found, "config": config}


def release(found: dict[str, Any]) -> dict[str, Any]:
    """Return a release as flyctl shows it; what its query has not asked for is a zero value."""
    user = found.get("user") or {}
    return {
        "ID": found.get("id", ""),
        "Version": found.get("version", 0),
        "Stable": found.get("stable", False),
        "InProgress": False,
        "Reason": found.get("reason", ""),
        "Description": found.get("description", ""),
        "Status": found["status"],
        "DeploymentStrategy": "",
        "Metadata": None,
        "User": {
            "ID": user.get("id", ""),
            "Name": user.get("name", ""),
            "Email": user.get("email", ""),
            "EnablePaidHobby": False,
        },
        "EvaluationID": "",
        "CreatedAt": found["createdAt"],
        "ImageRef": found.get("imageRef", ""),
    }


def log_entry(found: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the log as flyctl shows it."""
    meta = found.get("meta") or {}
    return {
        "level": found["level"],
        "instance": found["instance"],
        "message": found["message"],
        "region": found["region"],
        "timestamp": found["timestamp"],
        "meta": {
            "Instance": meta.get("instance", ""),
            "Region": meta.get("region", ""),
            "Event": {"Provider": (meta.get("event") or {}).get("provider", "")},
            "HTTP": {
                "Request": {"ID": "", "Method": "", "Version": ""},
                "Response": {"status_code": 0},
            },
            "Error": {"Code": 0, "Message": ""},
            "URL": {"Full": ""},
        },
    }


def log_line(entry: dict[str, Any]) -> str:
    """Return a line of the log for people."""
    seconds = entry["timestamp"].partition(".")[0].removesuffix("Z")
    who = f"{entry['meta']['Event']['Provider']}[{entry['instance']}]"
    return f"{seconds}Z {who} {entry['region']} [{entry['level']}]{entry['message']}"


def status(app: dict[str, Any], number: int, machines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of `status`."""
    owner = app["organization"]
    return {
        "ID": app["id"],
        "Name": app["name"],
        "Deployed": app["deployed"],
        "Status": app["status"],
        "Hostname": app["hostname"],
        "Version": number,
        "AppURL": app["appUrl"],
        "Organization": {
            "ID": owner["id"],
            "InternalNumericID": str(owner["internalNumericId"]),
            "Name": "",
            "Slug": owner["slug"],
            "RawSlug": "",
            "PaidPlan": owner["paidPlan"],
        },
        "PlatformVersion": app["platformVersion"],
        "Machines": machines,
        **({"Network": app["network"]} if app["network"] else {}),
    }


def table(heads: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print rows for people; nothing of ours reads them."""
    lines = [heads, *(tuple(str(each) for each in row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    for line in lines:
        cells = " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(f" {cells}\n")


def seconds(text: str) -> float:
    """Read a duration such as 10s or 1m30s; a bare number is seconds. Raises ValueError."""
    total, digits = 0.0, ""
    rest = text
    while rest:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(digits) :]
        unit = next((each for each in _UNITS if rest.startswith(each)), "")
        if not digits or (rest and not unit):
            raise ValueError(text)
        total += float(digits) * _UNITS.get(unit, 1.0)
        rest = rest[len(unit) :]
    return total
