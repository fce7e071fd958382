"""The verbs that change something: setup, deploy, promote, rollback."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.deploy import plan, report, summary, values
from myhealth_cli.deploy.environments import deployed
from myhealth_cli.deploy.errors import FlyctlError, GateError, NothingChangedError
from myhealth_cli.deploy.ground import Ground, app_of, commit, stand
from myhealth_cli.deploy.lock import app_lock, file_lock, holder
from myhealth_cli.deploy.machines_api import MachinesApi, token
from myhealth_cli.deploy.probe import Patiences, Probe, canary, encrypted
from myhealth_cli.deploy.registry import pinned
from myhealth_cli.deploy.rollout import Rollout
from myhealth_cli.deploy.state import Image
from myhealth_cli.tokens import TokenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from myhealth_cli.deploy.environments import Deployed
    from myhealth_cli.deploy.lock import Held
    from myhealth_cli.deploy.plan import Plan
    from myhealth_cli.deploy.state import App
    from myhealth_cli.tokens import TokenSource

DONE: Final = 0
FAILED: Final = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What all verbs share. `url`: where to probe, instead of the environment's address."""

    dry_run: bool = False
    as_json: bool = False
    url: str | None = None
    bake_s: float = 60.0
    ha: bool = True
    smoke: bool = True
    patiences: Patiences = Patiences()


def setup(
    name: str,
    options: Options,
    *,
    file: Path | None,
    prompt: Callable[[str], str] | None,
    replace: bool,
    org: str | None,
) -> int:
    """Make an environment's app and set its secrets, from a file or asked for.

    `prompt` asks for a value, hidden; None: there is nobody to ask. It is called outside the event loop,
    which would keep a Ctrl-C to itself.
    """
    environment = deployed(name)
    given = {} if file is None else _from_file(file)
    ground, app = asyncio.run(_seen(environment))
    given = {each: given[each] for each in environment.known if each in given}
    there = {each.name for each in app.secrets}
    asked = [] if prompt is None else [each for each in environment.known if replace or each not in there]
    if prompt is not None and asked and not options.dry_run:
        given = _asked(environment, ground.root, asked, there, prompt)
    elif given:
        _fit(environment, ground.root, given)
    names = dict.fromkeys(asked) if asked and options.dry_run else given
    wanted = plan.setup(environment, app, names, replace=replace, org=org, asked=prompt is not None)
    if options.dry_run:
        report.show_plan(wanted, as_json=options.as_json)
        return DONE

    async def go() -> int:
        with file_lock(ground.records, environment.app) as held:
            ground.fly.inherited = (held,)
            return await _execute("setup", ground, wanted, options, secrets=given)

    return asyncio.run(go())


async def _seen(environment: Deployed) -> tuple[Ground, App]:
    ground = await stand()
    return ground, await app_of(ground, environment)


def _from_file(file: Path) -> dict[str, str]:
    found = values.read_file(file)
    if values.seen_by_others(file):
        report.tell(f"{file} can be read by others on this machine: `chmod 600 {file}`")
    return found


def _asked(
    environment: Deployed, root: Path, names: list[str], there: set[str], prompt: Callable[[str], str]
) -> dict[str, str]:
    """Ask a person. Raises NothingChangedError when they have had enough."""
    report.tell(
        f"The secrets of {environment.name} ({environment.app}). What you type is not shown; "
        "Enter leaves out what is optional or set."
    )
    try:
        return values.ask(
            names,
            needed=[each for each in environment.secrets if each not in there],
            prompt=prompt,
            check=lambda found: values.look(environment, root, found),
            tell=report.tell,
        )
    except KeyboardInterrupt as error:
        raise NothingChangedError("interrupted", hint="say it again when you have the values") from error


def _fit(environment: Deployed, root: Path, given: Mapping[str, str]) -> None:
    """See that values are what the server takes. Raises NothingChangedError, with all that is wrong."""
    found = values.look(environment, root, given)
    for each in found:
        if each.warning:
            report.tell(f"{each.says}: {each.hint}")
    if wrong := [each for each in found if not each.warning]:
        raise NothingChangedError(
            "; ".join(each.says for each in wrong), hint="; ".join(dict.fromkeys(each.hint for each in wrong))
        )


def deploy(name: str, options: Options, *, image: str | None, release: str | None) -> int:
    """Deploy to staging: a build of this commit, or an image that exists."""
    environment = deployed(name)
    if environment.name == "production":
        raise NothingChangedError(
            "production gets what staging has proven, never a build of its own", hint="myhealth promote"
        )

    async def target(ground: Ground, app: App) -> tuple[Image, str | None]:
        if image is not None:
            ref = await _known(ground, environment, image) if app.exists else image
            return Image(ref, release or plan.label_of(ref)), None
        label = await commit(ground.root)
        return Image(f"registry.fly.io/{environment.app}:{label}", release or label), label

    async def planned(ground: Ground, app: App, url: str) -> Plan:
        wanted, label = await target(ground, app)
        return plan.deploy(
            environment,
            app,
            wanted,
            build=label,
            bake=options.bake_s,
            url=url,
            ha=options.ha,
            smoke=options.smoke,
        )

    return asyncio.run(_gated("deploy", environment, options, planned))


def promote(options: Options, *, staging_url: str | None, image: str | None = None) -> int:
    """Put the image that staging runs on production; `image`: only if it is this one."""
    environment, source = deployed("production"), deployed("staging")

    async def planned(ground: Ground, app: App, url: str) -> Plan:
        staging = await app_of(ground, source)
        wanted = plan.promote(
            staging,
            environment,
            app,
            bake=options.bake_s,
            url=url,
            ha=options.ha,
            smoke=options.smoke,
            expected=image,
        )
        if not options.dry_run:
            await _green(staging, staging_url or source.url, options.patiences)
        unsigned = await asyncio.to_thread(_unsigned, environment, ground.root)
        return msgspec.structs.replace(wanted, notes=(*wanted.notes, *unsigned))

    return asyncio.run(_gated("promote", environment, options, planned))


def _unsigned(environment: Deployed, root: Path) -> list[str]:
    """Say which texts nobody has signed. No refusal: an image is of its own commit, and starts with them."""
    try:
        found = values.drafts(environment, root)
    except NothingChangedError as error:
        return [f"whether the texts are signed is not known: {error}"]
    many = f"nobody has signed {len(found)} texts of this checkout ({', '.join(found)})"
    return [f"{many}: no real users before that (docs/design/safety.md)"] if found else []


def rollback(name: str, options: Options, *, number: int | None) -> int:
    """Go back to a release, or to what was proven before."""
    environment = deployed(name)

    async def planned(_ground: Ground, app: App, url: str) -> Plan:
        return plan.rollback(environment, app, number, bake=options.bake_s, url=url)

    return asyncio.run(_gated("rollback", environment, options, planned))


async def _gated(
    verb: str,
    environment: Deployed,
    options: Options,
    planned: Callable[[Ground, App, str], Awaitable[Plan]],
) -> int:
    """Plan under the app's lock, from what is there then, and execute."""
    url = options.url or environment.url
    encrypted(url, "--url")
    ground = await stand()
    if options.dry_run:
        report.show_plan(
            await planned(ground, await app_of(ground, environment), url), as_json=options.as_json
        )
        return DONE
    user = await _signed_in()
    async with AsyncExitStack() as stack:
        ground.fly.inherited = (stack.enter_context(file_lock(ground.records, environment.app)),)
        api = await stack.enter_async_context(MachinesApi(ground.fly))
        held = None
        if (await app_of(ground, environment)).exists:
            try:
                held = await stack.enter_async_context(
                    app_lock(api, ground.fly, environment.app, holder(ground.records))
                )
            except FlyctlError as error:
                raise NothingChangedError(str(error), hint=error.hint or "say it again") from error
        # Read under the lock: what was read before may be another deploy's past.
        wanted = await planned(ground, await app_of(ground, environment), url)
        return await _execute(verb, ground, wanted, options, api=api, tokens=user, lock=held)


async def _execute(
    verb: str,
    ground: Ground,
    wanted: Plan,
    options: Options,
    *,
    api: MachinesApi | None = None,
    tokens: TokenSource | None = None,
    secrets: Mapping[str, str] | None = None,
    lock: Held | None = None,
) -> int:
    rollout = Rollout(
        ground.fly,
        folder=ground.root,
        api=api,
        tokens=tokens,
        secrets=secrets,
        patiences=options.patiences,
        told=report.progress,
        lock=lock,
    )
    outcome = await rollout.run(wanted)
    summary.write(summary.of_outcome(verb, outcome))
    with suppress(OSError):  # a full disk here says nothing of the app there
        report.hand_on(outcome, os.environ)
        report.record(ground.records, verb, outcome)
    # Last: whoever reads along may be gone (`| head`, a lost terminal).
    report.show_outcome(outcome, as_json=options.as_json)
    return DONE if outcome.ok else FAILED


async def _known(ground: Ground, environment: Deployed, image: str) -> str:
    """Return an image by its digest. Raises NothingChangedError: there is none."""
    try:
        return await pinned(await token(ground.fly), environment.app, image)
    except FlyctlError as error:
        raise NothingChangedError(str(error), hint=error.hint or "name one that was pushed") from error


async def _signed_in() -> TokenSource:
    """Return the canary user, signed in: a deploy that nobody could test is not begun."""
    user = canary(os.environ)
    try:
        await user.token()
    except TokenError as error:
        raise NothingChangedError(
            f"the canary user cannot sign in: {error}", hint="check SUPABASE_URL, the key and CANARY_*"
        ) from error
    return user


async def _green(staging: App, url: str, patiences: Patiences) -> None:
    """See that every machine of staging answers now. Raises NothingChangedError."""
    running = staging.running
    try:
        async with Probe(url, patiences) as probe:
            await probe.machines((each.id for each in staging.machines), running and running.release)
    except GateError as error:
        raise NothingChangedError(f"staging is not green: {error}", hint="myhealth deploy staging") from error
