"""`myhealth status`: what runs, what is asleep, what was proven, and the last releases; wakes nobody."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import msgspec

from myhealth_cli.deploy import report, state
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.ground import app_of, no_app, stand


class MachineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A machine: Fly's `state`, and what it means."""

    id: str
    state: str
    is_: Literal["awake", "asleep", "changing or broken"] = msgspec.field(name="is")
    region: str
    image: str
    release: str
    cordoned: bool
    left_over: bool
    """Of a bluegreen deploy that is at work, or that died: then the next deploy removes it."""
    checks: dict[str, str]
    proven: bool
    crashes: list[str]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An app."""

    environment: str
    app: str
    url: str
    machines: list[MachineStatus]
    proven: tuple[state.Image, ...]
    releases: tuple[state.Release, ...]
    secrets: list[str]


def run(name: str, *, as_json: bool) -> int:
    """Print it. Raises NothingChangedError."""
    environment = deployed(name)

    async def go() -> state.App:
        return await app_of(await stand(), environment)

    app = asyncio.run(go())
    if not app.exists:
        raise no_app(environment)
    found = Status(
        environment=environment.name,
        app=app.name,
        url=environment.url,
        machines=[_machine(each, left_over=each in app.left_over) for each in app.machines],
        proven=app.good,
        releases=app.releases[:10],
        secrets=[f"{each.name} ({each.status})" if each.status else each.name for each in app.secrets],
    )
    if as_json:
        report.show_json(found)
    else:
        sys.stdout.write(_words(found))
    return 0


def _machine(machine: state.Machine, *, left_over: bool) -> MachineStatus:
    image = state.Image(machine.image_ref.exact, machine.release)
    awake = "awake" if machine.state == "started" else "changing or broken"
    return MachineStatus(
        id=machine.id,
        state=machine.state,
        is_="asleep" if machine.asleep else awake,
        region=machine.region,
        image=machine.image_ref.exact,
        release=machine.release,
        cordoned=machine.cordoned,
        left_over=left_over,
        checks={each.name: each.status for each in machine.checks},
        proven=any(each.same(image) for each in machine.good[:1]),
        crashes=[each.crash for each in machine.events if each.crash],
    )


def _words(found: Status) -> str:
    lines = [f"{found.app} ({found.environment}) at {found.url}"]
    if not found.machines:
        lines.append("  no machines: nothing has been deployed")
    for each in found.machines:
        checks = ", ".join(f"{name} {status}" for name, status in each.checks.items()) or "no checks"
        proven = "proven" if each.proven else "NOT proven"
        proven += ", cordoned" if each.cordoned else ""
        proven += ", of a deploy that is at work or has died: deploy again" if each.left_over else ""
        lines += [
            f"  machine {each.id} in {each.region}: {each.is_} ({each.state}); {checks}",
            f"    {each.image}, release {each.release or '?'}, {proven}",
        ]
        if each.crashes:
            lines.append(f"    crashed lately: {', '.join(each.crashes)}")
    for each in found.releases:
        lines.append(f"  v{each.version} {each.status} {each.created_at} {each.image_ref}".rstrip())
    lines.append(f"  secrets: {', '.join(found.secrets) or 'none'}")
    return "".join(f"{report.plain(line)}\n" for line in lines)
