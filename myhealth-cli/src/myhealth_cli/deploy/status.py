"""`myhealth status`: what is wrong, what runs, what is asleep, what was proven, who deploys; wakes nobody."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from myhealth_cli.deploy import lock, plan, report, state
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.deploy.ground import app_of, no_app, stand
from myhealth_cli.deploy.machines_api import MachinesApi

if TYPE_CHECKING:
    from myhealth_cli.deploy.flyctl import Flyctl

Is: TypeAlias = Literal["awake", "starting", "failing", "asleep", "crashed", "changing"]

_BROKEN: Final = frozenset({"failing", "crashed"})
_GRACE_MS: Final = 60_000
"""How long a machine that has just started may have no passing check: longer than a boot."""
_LOOP: Final = 2
"""Crashes within that time that make a loop."""
_OUTPUT: Final = 160


class MachineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A machine: Fly's `state`, and what it means. `since`: its last event; `crashes`: of this release."""

    id: str
    state: str
    is_: Is = msgspec.field(name="is")
    since: str
    region: str
    image: str
    release: str
    cordoned: bool
    left_over: bool
    """Of a bluegreen deploy that is at work, or that died: then the next deploy removes it."""
    checks: dict[str, str]
    check_output: str
    proven: bool
    crashes: list[str]
    last_crash: str


class Deploying(msgspec.Struct, frozen=True):
    """Who holds the app's lock, and when it ends by itself."""

    who: str
    until: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An app. `summary` is what to see at a glance; `problems`, in words, is empty if nothing is wrong."""

    environment: str
    app: str
    url: str
    summary: str
    problems: list[str]
    machines: list[MachineStatus]
    way_back: state.Image | None
    deploying: Deploying | None
    proven: tuple[state.Image, ...]
    releases: tuple[state.Release, ...]
    secrets: list[str]


def run(name: str, *, as_json: bool) -> int:
    """Print it. Raises NothingChangedError."""
    environment = deployed(name)

    async def go() -> tuple[state.App, float]:
        ground = await stand()
        app = await app_of(ground, environment)
        return app, time.time() + await _ahead(ground.fly, app)

    app, now = asyncio.run(go())
    if not app.exists:
        raise no_app(environment)
    found = look(app, environment.name, environment.url, now)
    if as_json:
        report.show_json(found)
    else:
        sys.stdout.write(words(found, now))
    return 0


async def _ahead(fly: Flyctl, app: state.App) -> float:
    """Return how far Fly's clock is ahead of ours, in seconds, where a lock's end is to be judged by it."""
    locked = [each.id for each in app.machines if lock.noted(each)[0]]
    if not locked:
        return 0.0
    with suppress(FlyctlError):
        async with MachinesApi(fly) as api:
            await api.metadata(app.name, locked[0])
            return api.ahead_s
    return 0.0


def look(app: state.App, environment: str, url: str, now: float) -> Status:
    """Judge an app as Fly shows it. `now`: seconds since 1970."""
    newest = _seconds(app.releases[0].created_at) if app.releases else 0.0
    machines = [
        _machine(each, left_over=each in app.left_over, since=newest, now=now) for each in app.machines
    ]
    deploying = _deploying(app, now)
    busy = deploying is not None
    problems = [*_of_machines(app, machines, busy=busy), *_of_app(app, machines, environment, busy=busy)]
    return Status(
        environment=environment,
        app=app.name,
        url=url,
        summary=_summary(machines, problems) + ("; a deploy is under way" if busy else ""),
        problems=problems,
        machines=machines,
        way_back=_way_back(app),
        deploying=deploying,
        proven=app.good,
        releases=app.releases[:10],
        secrets=[f"{each.name} ({each.status})" if each.status else each.name for each in app.secrets],
    )


def _machine(machine: state.Machine, *, left_over: bool, since: float, now: float) -> MachineStatus:
    image = state.Image(machine.image_ref.exact, machine.release)
    crashed = [each for each in machine.events if each.crash and each.timestamp >= since * 1000]
    last = max((each.timestamp for each in crashed), default=0)
    # A check of a machine that sleeps is of when it was awake.
    bad = [each for each in machine.checks if each.status != "passing"] if not machine.asleep else []
    return MachineStatus(
        id=machine.id,
        state=machine.state,
        is_=_is(machine, crashed, now),
        since=_time(machine.changed_ms / 1000),
        region=machine.region,
        image=machine.image_ref.exact,
        release=machine.release,
        cordoned=machine.cordoned,
        left_over=left_over,
        checks={each.name: each.status for each in machine.checks},
        check_output=" ".join(bad[0].output.split())[:_OUTPUT] if bad else "",
        proven=any(each.same(image) for each in machine.good[:1]),
        crashes=[each.crash for each in crashed],
        last_crash=_time(last / 1000),
    )


def _is(machine: state.Machine, crashed: list[state.Event], now: float) -> Is:
    """Say what a machine is. One that dies, is started again and dies is not awake in between."""
    lately = [each for each in crashed if each.timestamp >= now * 1000 - _GRACE_MS]
    if machine.died or machine.state == "failed" or len(lately) >= _LOOP:
        return "crashed"
    if machine.asleep:
        return "asleep"
    if machine.state != state.RUNNING:
        return "changing"
    statuses = {each.status for each in machine.checks}
    if "critical" in statuses:
        return "failing"
    if "warning" in statuses:
        return "failing" if now * 1000 - machine.changed_ms > _GRACE_MS else "starting"
    return "awake"


def _of_machines(app: state.App, machines: list[MachineStatus], *, busy: bool) -> list[str]:
    """Say what is wrong with machines. `busy`: a deploy is under way, to which cordons belong."""
    found: list[str] = []
    cordons = not busy and not app.left_over
    for each in machines:
        count = len(each.crashes)
        crashes = f"{count} times with this release, {each.crashes[0]}" if count else ""
        if each.is_ == "crashed":
            found.append(f"machine {each.id} has crashed" + (f": {crashes}" if crashes else ""))
        elif each.is_ == "failing":
            checks = ", ".join(f"{name} {status}" for name, status in each.checks.items())
            found.append(f"machine {each.id} runs and fails its check: {checks}: {each.check_output}")
        elif crashes:
            found.append(f"machine {each.id} has crashed before it ran: {crashes}")
        if each.cordoned and cordons:
            undo = f"fly machine uncordon {each.id} --app {app.name}"
            found.append(f"machine {each.id} is cordoned: no request reaches or wakes it until `{undo}`")
    return found


def _of_app(app: state.App, machines: list[MachineStatus], environment: str, *, busy: bool) -> list[str]:
    """Say what is wrong besides; `busy`: a deploy is under way, in which machines differ for a while."""
    found: list[str] = []
    left = [each.id for each in machines if each.left_over]
    stay = [each for each in machines if not each.left_over]
    if busy:
        pass
    elif len({(each.image, each.release) for each in stay}) > 1:
        found.append("the machines run different images")
    elif any(not each.proven for each in stay):
        found.append(f"release {stay[0].release or '?'} is NOT proven: no gate was passed")
    if left and not busy:
        verb = "myhealth promote" if environment == "production" else f"myhealth deploy {environment}"
        back = _rollback(environment)
        found.append(f"a deploy has died and left {', '.join(left)}: `{verb}` or `{back}` removes that first")
    if staged := [each.name for each in app.secrets if each.status.lower() in state.WAITING]:
        found.append(f"secrets wait for a deploy: {', '.join(staged)}")
    return found


def _rollback(environment: str) -> str:
    return "myhealth rollback" + ("" if environment == "production" else f" --environment {environment}")


def _summary(machines: list[MachineStatus], problems: list[str]) -> str:
    """Say in a few words how it is; broken machines first."""
    kinds = [each.is_ for each in machines]
    broken = sum(each in _BROKEN for each in kinds)
    if not machines:
        return "nothing has been deployed"
    if broken:
        return "BROKEN" if broken == len(kinds) else f"{broken} of {len(kinds)} machines BROKEN"
    if "changing" in kinds or "starting" in kinds:
        return "changing: look again in a minute"
    if all(each.cordoned for each in machines):
        return "out of service: every machine is cordoned"
    # One that is cordoned serves nobody, whatever it does.
    awake = any(each.is_ == "awake" and not each.cordoned for each in machines)
    how = "serving" if awake else "asleep: the next request wakes it"
    return f"{how}, with problems" if problems else how


def _way_back(app: state.App) -> state.Image | None:
    try:
        return plan.before(app)
    except NothingChangedError:
        return None


def _deploying(app: state.App, now: float) -> Deploying | None:
    for who, until in map(lock.noted, app.machines):
        if who and until > now:
            return Deploying(who, _time(until))
    return None


def words(found: Status, now: float) -> str:
    """Return it for a person. `now`: seconds since 1970."""
    lines = [f"{found.app} ({found.environment}) at {found.url}: {found.summary}"]
    lines += [f"  ! {each}" for each in found.problems]
    if any(each.is_ in _BROKEN for each in found.machines):
        lines.append(f"    why: myhealth logs {found.environment} --no-follow; docs/runbooks/incident.md")
    if found.deploying:
        lines.append(f"  {found.deploying.who} is deploying; if it was killed: until {found.deploying.until}")
    for each in found.machines:
        since = f"since {each.since} ({_ago(each.since, now)})"
        proven = "proven" if each.proven else "NOT proven"
        proven += ", cordoned" if each.cordoned else ""
        at_work = "of the deploy that is under way" if found.deploying else "left over"
        proven += f", {at_work}" if each.left_over else ""
        lines += [
            f"  machine {each.id} in {each.region}: {each.is_} ({each.state}) {since}{_checks(each)}",
            f"    release {each.release or '?'}, {proven}, {each.image}",
        ]
        if each.crashes:
            lines.append(f"    crashed {len(each.crashes)} times, last {_ago(each.last_crash, now)}")
    back = found.way_back.release if found.way_back else "nothing: no other image was proven"
    lines.append(f"  `{_rollback(found.environment)}` would go to: {back}")
    for each in found.releases:
        when = f"{each.created_at} ({_ago(each.created_at, now)})"
        lines.append(f"  v{each.version} {each.status} {when} {each.image_ref}".rstrip())
    lines.append(f"  secrets: {', '.join(found.secrets) or 'none'}")
    return "".join(f"{report.plain(line)}\n" for line in lines)


def _checks(machine: MachineStatus) -> str:
    """Say what the checks say; those of a machine that does not run are of another time."""
    if machine.is_ in {"asleep", "crashed"}:
        return ""
    said = ", ".join(f"{name} {status}" for name, status in machine.checks.items())
    return f"; {said or 'no checks'}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def _seconds(time: str) -> float:
    """Return a time of Fly's as seconds since 1970; 0 if it is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def _ago(time: str, now: float) -> str:
    """Say how long ago a time was, in its largest unit."""
    if not (then := _seconds(time)):
        return "unknown"
    gone = max(0, int(now - then))
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if gone >= seconds:
            return f"{gone // seconds} {unit} ago"
    return f"{gone} s ago"
