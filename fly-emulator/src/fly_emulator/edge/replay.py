"""`fly-replay`: what an app's answer says about who should have had the request.

Source: superfly/docs networking/dynamic-request-routing.
"""

from __future__ import annotations

import re
import time
from typing import Final, Literal

import msgspec

from fly_emulator.machine_config import duration_seconds

_FIELD: Final = re.compile(r'\s*([a-z_]+)\s*=\s*(?:"([^"]*)"|([^;"]*))\s*(?:;|$)')
_KNOWN: Final = frozenset(
    {"region", "instance", "prefer_instance", "app", "state", "elsewhere", "timeout", "fallback"}
)


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One `fly-replay` header."""

    instance: str | None = None
    prefer_instance: str | None = None
    regions: tuple[str, ...] = ()
    app: str | None = None
    state: str | None = None
    elsewhere: bool = False
    timeout: float | None = None
    fallback: Literal["force_self", "prefer_self"] | None = None


def parse_replay(value: str) -> Replay:
    """Read the header. Raises ValueError, which is PA03."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(value.rstrip()):
        match = _FIELD.match(value, at)
        if match is None or match[1] not in _KNOWN or match[1] in fields:
            raise ValueError(f"not a fly-replay field at {value[at:]!r}")
        fields[match[1]] = (match[2] if match[2] is not None else match[3]).strip()
        at = match.end()
    if not fields.keys() - {"state", "timeout", "fallback"}:
        raise ValueError("fly-replay names no target")
    return _replay(fields)


def _replay(fields: dict[str, str]) -> Replay:
    fallback = fields.get("fallback")
    if fallback not in {None, "force_self", "prefer_self"}:
        raise ValueError(f"fallback {fallback!r} is not force_self or prefer_self")
    if fields.get("elsewhere", "false") not in {"true", "false"}:
        raise ValueError("elsewhere is true or false")
    timeout = fields.get("timeout")
    regions = (name.strip() for name in fields.get("region", "").split(","))
    return Replay(
        instance=fields.get("instance") or None,
        prefer_instance=fields.get("prefer_instance") or None,
        regions=tuple(name for name in regions if name),
        app=fields.get("app") or None,
        state=fields.get("state"),
        elsewhere=fields.get("elsewhere") == "true",
        timeout=None if timeout is None else duration_seconds(timeout),
        fallback=msgspec.convert(fallback, Literal["force_self", "prefer_self"] | None),
    )


def source_header(instance: str, region: str, state: str | None) -> str:
    """Return `fly-replay-src`: who sent the request away, and when (microseconds since 1970)."""
    text = f"instance={instance};region={region};t={time.time_ns() // 1000}"
    return text if state is None else f"{text};state={state}"


def failed_header(replay: Replay, *, app: str, source: str, reason: str, elapsed: float) -> str:
    """Return `fly-replay-failed`, which a fallback carries back to the machine that replayed."""
    parts = [
        ("instance", replay.instance or replay.prefer_instance),
        ("app", replay.app or app),
        ("region", ",".join(replay.regions) or None),
        ("replay_source", source),
        ("reason", reason),
        ("elapsed_ms", str(round(elapsed * 1000))),
    ]
    return ";".join(f"{name}={value}" for name, value in parts if value is not None)
