"""Executes a plan step by step; on a failure it takes the plan's way back, and says what is left."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.deploy import bounds, build, envfile, looks, plan, registry, removal, state
from myhealth_cli.deploy.errors import FlyctlError, GateError, LockLostError
from myhealth_cli.deploy.probe import Patiences, Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from myhealth_cli.deploy.flyctl import Flyctl
    from myhealth_cli.deploy.lock import Held
    from myhealth_cli.deploy.machines_api import MachinesApi
    from myhealth_cli.deploy.plan import Plan, Step
    from myhealth_cli.tokens import TokenSource

_LOOK_S: Final = 5.0
"""How often a bake looks."""
_HELD_TRIES: Final = 8
_HELD_PAUSE_S: Final = 4.0
_START_TRIES: Final = 10
_SHORT: Final = 3
"""What is no longer than this is no secret, but could be a part of any word."""
_SEEN_S: Final = 10.0
"""Until Fly's proxy knows what takes requests again; flyctl's bluegreen waits as long."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A step that was tried; `error` is empty if it succeeded."""

    step: Step
    seconds: float
    detail: str = ""
    error: str = ""
    recovery: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan went. `ok`: all of it. `recovered`: it failed, and what ran before serves again, proven."""

    app: str
    ok: bool
    changed: bool
    recovered: bool = False
    steps: tuple[Done, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    seconds_to_safe: float | None = None
    """From the failure to the moment the way back was proven."""
    image: str = ""
    """What was proven, by its digest; empty unless `ok`."""
    left: str = ""
    """What state things are in, in words."""
    left_over: tuple[str, ...] = ()
    """Machines that could not be removed, or not be put back into service; `notes` say what to do."""


def _by_hand(app: str, machine: str, *, serves: bool) -> str:
    """Say what is left to do; what was to serve again is the proven one: it is not destroyed."""
    what, verb = ("takes no requests", "uncordon") if serves else ("is left over", "destroy --force")
    return (
        f"machine {machine} {what}: `fly machine {verb} {machine} --app {app}`, when Fly answers for it again"
    )


class Rollout:
    """Runs plans of one app. `told` hears of every step, before and after; it must not raise."""

    def __init__(
        self,
        fly: Flyctl,
        *,
        folder: Path,
        api: MachinesApi | None = None,
        tokens: TokenSource | None = None,
        secrets: Mapping[str, str] | None = None,
        patiences: Patiences | None = None,
        told: Callable[[Step, Done | None], None] = lambda _step, _done: None,
        lock: Held | None = None,
    ) -> None:
        self._fly = fly
        self._folder = folder
        self._api = api
        self._tokens = tokens
        self._secrets = secrets or {}
        self._patiences = patiences or Patiences()
        self._told = told
        self._lock = lock
        self._compared = ""
        """The reference that all machines had, with its digest, when their images were compared."""
        self._stuck: dict[str, str] = {}
        """What could not be removed or put back into service, by machine, and why."""
        self._unserved: set[str] = set()
        """Of those, the ones that were to serve again."""
        self._done: list[Done] = []

    async def run(self, wanted: Plan) -> Outcome:
        """Carry a plan out. Never raises for a step that fails: the outcome says it."""
        outcome = Outcome(app=wanted.app, ok=False, changed=False, notes=wanted.notes)
        try:
            error = await self._all(wanted.steps)
            outcome = self._so_far(outcome, error or "; ".join(self._stuck.values()))
            if outcome.ok:
                return outcome
            deployed = any(isinstance(each.step, plan.DeployImage) for each in self._done)
            unproven = any(isinstance(each.step, plan.WakeMachines) for each in self._done)
            if error and wanted.recovery and (deployed or unproven):
                outcome = await self._recovered(wanted, outcome)
        except LockLostError as error:
            # What runs now is somebody else's matter: neither noted as proven by us nor taken back.
            outcome = self._so_far(outcome, "; ".join(filter(None, (outcome.error, str(error)))))
        left = tuple(self._stuck)
        notes = tuple(_by_hand(wanted.app, each, serves=each in self._unserved) for each in left)
        return msgspec.structs.replace(
            outcome, left=await self._left(wanted.app), left_over=left, notes=(*outcome.notes, *notes)
        )

    def _so_far(self, outcome: Outcome, error: str) -> Outcome:
        proven = [each.detail for each in self._done if isinstance(each.step, plan.NoteGood)]
        return msgspec.structs.replace(
            outcome,
            ok=not error,
            changed=any(isinstance(each.step, plan.CHANGES) for each in self._done),
            steps=tuple(self._done),
            error=error,
            image="" if error else "".join(proven[-1:]),
        )

    async def _recovered(self, wanted: Plan, failed: Outcome) -> Outcome:
        began = time.monotonic()
        # What cannot be removed does not keep the rest from going back.
        await self._all(await self._tidying(wanted.app), recovery=True)
        again = await self._all(await self._way_back(wanted), recovery=True)
        return msgspec.structs.replace(
            failed,
            changed=True,
            steps=tuple(self._done),
            error="; ".join(
                (
                    failed.error,
                    *([f"and going back failed: {again}"] if again else []),
                    *(each for each in self._stuck.values() if each not in failed.error),
                )
            ),
            recovered=not again,
            seconds_to_safe=None if again else round(time.monotonic() - began, 3),
        )

    async def _tidying(self, app: str) -> tuple[Step, ...]:
        try:
            found = state.App(app, machines=await looks.machines(self._fly, app))
        except FlyctlError:
            return ()
        return tuple(plan.tidying(found, must=False))

    async def _way_back(self, wanted: Plan) -> tuple[Step, ...]:
        """Leave the deploy out where no machine has changed (a failed migration); the gates are passed."""
        first = wanted.recovery[0]
        try:
            app = state.App(wanted.app, machines=await self._machines(wanted.app))
        except FlyctlError:
            return wanted.recovery
        there = isinstance(first, plan.DeployImage) and app.has(first.image)
        return wanted.recovery[1:] if there else wanted.recovery

    async def _left(self, app: str) -> str:
        try:
            # Of what has not come to a deploy (`setup`) it need not be known.
            found = await (looks if self._api else state).machines(self._fly, app)
        except FlyctlError as error:
            return f"unknown: {error}"
        return (
            "; ".join(
                f"machine {each.id} {each.state}, {each.image_ref.exact}, release {each.release or '?'}"
                for each in found
            )
            or "no machines"
        )

    async def _all(self, steps: tuple[Step, ...], *, recovery: bool = False) -> str:
        """Do steps until one fails; return what failed, or nothing."""
        for step in steps:
            bound = bounds.of(step, self._patiences)
            if self._lock is not None and bound is not None:
                await self._lock.renew(bound.seconds, each=bound.of_each)
            self._told(step, None)
            began, detail, failed = time.monotonic(), "", ""
            try:
                detail = await self._do(step)
            except (GateError, FlyctlError) as error:
                failed = str(error)
            except Exception as error:  # noqa: BLE001 - whatever a broken release does to us, it is taken back
                failed = f"{type(error).__name__}: {str(error)[:200]}"
            for secret in self._secrets.values():
                # flyctl quotes a line that it cannot read.
                failed = failed.replace(secret, "***") if len(secret) > _SHORT else failed
            done = Done(
                step=step,
                seconds=round(time.monotonic() - began, 3),
                detail=detail,
                error=failed,
                recovery=recovery,
            )
            self._done.append(done)
            self._told(step, done)
            if failed:
                return failed
        return ""

    async def _do(self, step: Step) -> str:  # noqa: C901, PLR0911 - one for each kind of step
        """Do one step and return what it found. Raises GateError, FlyctlError."""
        match step:
            case plan.CreateApp():
                org = ("--org", step.org) if step.org else ()
                await self._fly.run("apps", "create", step.app, *org, "--yes")
                return ""
            case plan.StageSecrets():
                # On stdin: a command line can be read by every process of the machine.
                lines = "".join(envfile.line(name, self._secrets[name]) for name in step.names)
                await self._fly.run("secrets", "import", "--stage", "--app", step.app, stdin=lines)
                return ", ".join(step.names)
            case plan.BuildImage():
                return await build.push(self._fly, self._folder, step)
            case plan.DeployImage():
                return await self._deploy(step)
            case plan.RemoveMachines():
                return await self._remove(step)
            case plan.WakeMachines():
                return await self._wake(step.app)
            case plan.CompareImages():
                return await self._compare(step)
            case plan.ProbeMachines():
                async with Probe(step.url, self._patiences) as probe:
                    ids = [each.id for each in await self._machines(step.app)]
                    found = await probe.machines(ids, step.release)
                return f"{len(found)} machines, release {found[0].release if found else '?'}"
            case plan.AskCanary():
                return await self._ask(step.url)
            case plan.Bake():
                return await self._bake(step)
            case plan.NoteGood():
                return await self._note(step)

    async def _deploy(self, step: plan.DeployImage) -> str:
        ref = await self._pinned(step.app, step.image.ref)
        # Bluegreen refuses an app whose machines differ (ErrMultipleImageVersions): a rolling deploy
        # was killed in its middle, or one machine has pulled something else.
        app = state.App(step.app, machines=await looks.machines(self._fly, step.app))
        stuck = [each.id for each in app.machines if each.id in self._stuck]
        # DNS is doctor's business. Smoke checks stay: they stop flyctl at the first machine that dies.
        words = (
            *("deploy", "--app", step.app, "--config", step.config, "--image", ref),
            *("--env", f"RELEASE={step.image.release}", "--yes", "--dns-checks=false"),
            *(("--env", f"{state.FLED}={step.fled}") if step.fled else ()),
            *(() if step.ha else ("--ha=false",)),
            *(() if step.smoke else ("--smoke-checks=false",)),
            *(() if step.migrate else ("--skip-release-command",)),
            *(("--strategy", "rolling") if step.rolling or stuck or not app.alike else ()),
            *(word for each in stuck for word in ("--exclude-machines", each)),
        )
        for left in reversed(range(_HELD_TRIES)):
            try:
                await self._fly.run(*words, seconds=bounds.DEPLOY_S)
                break
            except FlyctlError as error:
                # A killed flyctl leaves its leases behind, for 13 s; the next one gives up on them at once.
                if not left or "lease currently held" not in str(error):
                    raise
                await asyncio.sleep(_HELD_PAUSE_S)
        return ref if app.alike else f"{ref}, rolling: the machines differ"

    async def _remove(self, step: plan.RemoveMachines) -> str:
        """Put back into service what stays, then remove. Raises GateError where one stays that must not."""
        for each in step.serve:
            try:
                await removal.serve(self._fly, step.app, each)
            except GateError as error:
                # What was to go serves on: without it nobody would.
                return self._kept(step, each, error)
        await asyncio.sleep(_SEEN_S if step.serve else 0)
        kept: list[str] = []
        for each in step.ids:
            try:
                await removal.remove(self._fly, step.app, each)
            except GateError as error:
                kept.append(self._kept(step, each, error))
        return "; ".join((f"{len(step.ids) - len(kept)} removed", *kept))

    def _kept(self, step: plan.RemoveMachines, machine: str, error: GateError) -> str:
        self._stuck[machine] = str(error)
        if machine in step.serve:
            self._unserved.add(machine)
        if step.must:
            raise error
        return str(error)

    async def _wake(self, app: str) -> str:
        """Start what sleeps. A start while a machine is being replaced is refused (412), and repeated."""
        found = await self._machines(app)
        if not found:
            raise GateError(f"{app} has no machines")
        for machine in found:
            if machine.state == "started":
                continue
            for left in reversed(range(_START_TRIES)):
                try:
                    await self._fly.run("machine", "start", machine.id, "--app", app)
                    break
                except FlyctlError as error:
                    if not left:
                        raise GateError(f"machine {machine.id} does not start: {error}") from error
                    # A request may have woken it since we looked; one that runs may refuse a start.
                    if any(
                        e.id == machine.id and e.state == "started"
                        for e in await looks.machines(self._fly, app)
                    ):
                        break
                    await asyncio.sleep(1)
        return f"{sum(each.state != 'started' for each in found)} of {len(found)} were not running"

    async def _machines(self, app: str) -> tuple[state.Machine, ...]:
        """Return the machines that the gates are about: without those that could not be removed."""
        return tuple(each for each in await looks.machines(self._fly, app) if each.id not in self._stuck)

    async def _pinned(self, app: str, ref: str) -> str:
        assert self._api is not None, "a plan that deploys is given the API"
        api = self._api

        async def ask() -> str:
            return await registry.pinned(await api.token(), app, ref)

        return await looks.again(ask)

    async def _compare(self, step: plan.CompareImages) -> str:
        ref = await self._pinned(step.app, step.image.ref)
        found = await self._machines(step.app)
        for each in found:
            if each.mispulled or not each.image_ref.is_of(ref):
                raise GateError(f"machine {each.id} has {each.image_ref.exact} instead of {ref}")
        self._compared = ref
        return f"{len(found)} machines, {ref.partition('@')[2]}"

    async def _ask(self, url: str) -> str:
        assert self._tokens is not None, "a plan that asks is given a user"
        async with Probe(url, self._patiences) as probe:
            answer = await probe.ask(self._tokens)
        return f"first word after {answer.first_word_s:.2f} s, whole answer {answer.total_s:.2f} s"

    async def _bake(self, step: plan.Bake) -> str:
        """Look every few seconds. A machine that has gone to sleep by itself is left alone."""
        ends = time.monotonic() + step.seconds
        known: dict[str, int] | None = None
        async with Probe(step.url, self._patiences) as probe:
            while (left := ends - time.monotonic()) > 0:
                found = await self._machines(step.app)
                if known is None:
                    known = {each.id: each.changed_ms for each in found}
                for each in found:
                    if crashed := state.crashes(each, known.get(each.id, 0)):
                        raise GateError(f"machine {each.id} crashed: {', '.join(crashed)}")
                    if each.state == "failed":
                        raise GateError(f"machine {each.id} has failed")
                    if each.state == "started":
                        await probe.ready(each.id)
                await asyncio.sleep(min(_LOOK_S, left))
        return await self._ask(step.url) if step.seconds else "not watched"

    async def _note(self, step: plan.NoteGood) -> str:
        assert self._api is not None, "a plan that notes is given the API"
        api = self._api
        found = await self._machines(step.app)
        for each in found:
            # The gates were passed some time ago: what runs by now, somebody's deploy by hand, is not proven.
            same = each.image_ref.is_of(self._compared or step.image.ref)
            if not same or each.release != step.image.release:
                raise GateError(f"machine {each.id} has {each.image_ref.exact} now, not {step.image}")
        before = state.App(step.app, machines=found).good
        # By digest where it is known: a tag can come to mean another image.
        exact = {each.image_ref.exact for each in found}
        image = state.Image(exact.pop() if len(exact) == 1 else step.image.ref, step.image.release)
        proven = state.noted(image, before, forget_newer=step.forget_newer, fled=step.fled)
        note = msgspec.json.encode(proven).decode()
        for each in found:
            await looks.again(functools.partial(api.set_metadata, step.app, each.id, state.GOOD, note))
        return image.ref
