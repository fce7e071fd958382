"""What a verb does, as a list of steps, from what an app is and what is wanted. Pure: nothing here is done.

A plan carries its own way back: `recovery` is what follows when a step fails after something was changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.state import Image

if TYPE_CHECKING:
    from collections.abc import Collection

    from myhealth_cli.deploy.environments import Deployed
    from myhealth_cli.deploy.state import App


class CreateApp(msgspec.Struct, frozen=True, tag_field="step", tag="create_app"):
    """Make the app; `org` None: the login's own organisation."""

    app: str
    org: str | None = None


class StageSecrets(msgspec.Struct, frozen=True, tag_field="step", tag="stage_secrets"):
    """Set secrets without restarting anything; the values go from the caller to flyctl's stdin."""

    app: str
    names: tuple[str, ...]


class BuildImage(msgspec.Struct, frozen=True, tag_field="step", tag="build_image"):
    """Build the checkout once and push it under a label."""

    app: str
    config: str
    label: str


class DeployImage(msgspec.Struct, frozen=True, tag_field="step", tag="deploy_image"):
    """Have flyctl put an image on every machine; `migrate`: with fly.toml's release command before."""

    app: str
    config: str
    image: Image
    migrate: bool = True
    ha: bool = True
    smoke: bool = True
    """With flyctl's own ten seconds at each machine, which stop it at the first one that dies."""
    rolling: bool = False
    """In place, whatever fly.toml says: bluegreen's own waits would keep a broken release serving."""
    fled: str = ""
    """Of a rollback: what ran before, noted on the machines, so that it goes on after a kill."""


class RemoveMachines(msgspec.Struct, frozen=True, tag_field="step", tag="remove_machines"):
    """Take away what a bluegreen deploy that died has left; what they run is drained first."""

    app: str
    ids: tuple[str, ...]
    serve: tuple[str, ...] = ()
    """What takes their place: it is put back into service before."""
    must: bool = True
    """Whether nothing goes on while one is there. On the way back it does, without that one."""


class WakeMachines(msgspec.Struct, frozen=True, tag_field="step", tag="wake_machines"):
    """Start whatever sleeps: flyctl checks nothing of a machine that does."""

    app: str


class CompareImages(msgspec.Struct, frozen=True, tag_field="step", tag="compare_images"):
    """Every machine has this image, all by the same digest: a failed pull can look like success."""

    app: str
    image: Image


class ProbeMachines(msgspec.Struct, frozen=True, tag_field="step", tag="probe_machines"):
    """Each machine answers /readyz and /version, with this release; None: all with the same."""

    url: str
    app: str
    release: str | None


class AskCanary(msgspec.Struct, frozen=True, tag_field="step", tag="ask_canary"):
    """The canary user asks a question and gets an answer, streamed, through the public address."""

    url: str


class Bake(msgspec.Struct, frozen=True, tag_field="step", tag="bake"):
    """Watch for crashes and unreadiness for a while, then ask once more."""

    app: str
    url: str
    seconds: float


class NoteGood(msgspec.Struct, frozen=True, tag_field="step", tag="note_good"):
    """Note the image as proven on every machine: what `rollback` and the next deploy go back to."""

    app: str
    image: Image
    forget_newer: bool = False
    """After a rollback: what was proven after this image is not gone back to again."""
    fled: Image | None = None
    """What ran before the rollback: not gone back to either, where this image was never noted."""


Step: TypeAlias = (
    CreateApp
    | StageSecrets
    | BuildImage
    | DeployImage
    | RemoveMachines
    | WakeMachines
    | CompareImages
    | ProbeMachines
    | AskCanary
    | Bake
    | NoteGood
)
CHANGES: Final = (CreateApp, StageSecrets, BuildImage, DeployImage, RemoveMachines)
"""Steps that change something a user or an operator could notice. A wake is not one."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in order, what is done if one fails once something was deployed, and why the plan is as it is."""

    app: str
    steps: tuple[Step, ...]
    recovery: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()


def setup(
    environment: Deployed,
    app: App,
    given: Collection[str],
    *,
    replace: bool,
    org: str | None = None,
    asked: bool = False,
) -> Plan:
    """Plan an app and its secrets. `given`: names there are values for; `replace`: set again what is set.

    `asked`: a person was asked for them. Raises NothingChangedError when one would be missing afterwards.
    """
    there = {each.name for each in app.secrets}
    missing = [name for name in environment.secrets if name not in there and name not in given]
    if missing:
        raise NothingChangedError(
            f"no value for {', '.join(missing)}",
            hint="say it again"
            if asked
            else "give a file that has them: --from FILE; or run it at a terminal",
        )
    names = tuple(name for name in environment.known if name in given and (replace or name not in there))
    steps: list[Step] = []
    if not app.exists:
        steps.append(CreateApp(environment.app, org))
    if names:
        steps.append(StageSecrets(environment.app, names))
    notes = () if steps else (f"{environment.app} is there with all its secrets: nothing to do",)
    return Plan(app=environment.app, steps=tuple(steps), notes=notes)


def deploy(
    environment: Deployed,
    app: App,
    image: Image,
    *,
    build: str | None,
    bake: float,
    url: str,
    ha: bool = True,
    smoke: bool = True,
) -> Plan:
    """Plan to put `image` on every machine, through all gates. `build`: the label to build it under before.

    Machines that have it already (a deploy that was killed after its change) only pass the gates.
    Raises NothingChangedError: no app, or secrets missing.
    """
    _require(environment, app)
    steps = tidying(app)
    app = app.without(app.left_over)
    there = app.runs(image)
    if not there:
        if build is not None:
            steps.append(BuildImage(environment.app, environment.config, build))
        steps.append(DeployImage(environment.app, environment.config, image, ha=ha, smoke=smoke))
    steps += [*_gates(environment, image, url), Bake(environment.app, url, bake)]
    steps.append(NoteGood(environment.app, image))
    back = _way_back(app, image)
    notes = ["every machine has this image: only the gates are passed"] if there else []
    if back is None:
        notes.append(_NOTHING_ELSE if app.good else _NOTHING_PROVEN)
    return Plan(
        app=environment.app,
        steps=tuple(steps),
        recovery=() if back is None else _return(environment, back, url),
        notes=tuple(notes),
    )


def promote(
    staging: App,
    environment: Deployed,
    app: App,
    *,
    bake: float,
    url: str,
    ha: bool = True,
    smoke: bool = True,
    expected: str | None = None,
) -> Plan:
    """Plan to put the very image of staging on production: by digest, never built again.

    `expected`: what the caller saw built and proven, with its digest. What staging says of itself (a
    release's name, a note) can be written by whoever has staging's token; a digest belongs to one image.
    Raises NothingChangedError: staging does not run one proven image everywhere, and as `deploy`.
    """
    if not staging.machines:
        raise NothingChangedError(f"{staging.name} runs nothing", hint="myhealth deploy staging")
    image = staging.running
    if image is None:
        raise NothingChangedError(
            f"{staging.name}: its machines run different images", hint="myhealth deploy staging"
        )
    if "@" not in image.ref:
        raise NothingChangedError(
            f"{staging.name}: Fly names no digest of its image", hint="myhealth deploy staging"
        )
    if expected is not None and image.ref.partition("@")[2] != expected.partition("@")[2]:
        raise NothingChangedError(
            f"{staging.name} runs {image}, not {expected}",
            hint="repeat the run that builds, and say yes to it",
        )
    if not any(each.same(image) for each in staging.good[:1]):
        raise NothingChangedError(
            f"{staging.name} runs {image}, which has not passed its gates", hint="myhealth deploy staging"
        )
    return deploy(environment, app, image, build=None, bake=bake, url=url, ha=ha, smoke=smoke)


def rollback(environment: Deployed, app: App, number: int | None, *, bake: float, url: str) -> Plan:
    """Plan to go back: to the release of that number, else to the newest proven image that does not run now.

    Without a release command: the schema stays, and older code works on it. A rollback has no way back of its
    own; what it leaves is told. Raises NothingChangedError.
    """
    _require(environment, app)
    # With what is left over, so that a deploy that died is what is gone back from.
    image = _numbered(app, number) if number is not None else before(app)
    fled, half = app.running, app.going_back
    if half is not None and half.runs.same(image):
        fled = Image(half.fled, "")
    ran = fled.ref if fled is not None else "several"
    steps = (
        *tidying(app, must=False),
        DeployImage(environment.app, environment.config, image, migrate=False, smoke=False, fled=ran),
        *_gates(environment, image, url),
        Bake(environment.app, url, bake),
        NoteGood(environment.app, image, forget_newer=True, fled=fled),
    )
    return Plan(app=environment.app, steps=steps, notes=(_NOT_BACK,))


_NOTHING_PROVEN: Final = "nothing proven to go back to: if this fails, the app stays as it is then"
_NOTHING_ELSE: Final = "this is the image to go back to: if it fails now, no older one takes its place"
_NOT_BACK: Final = "secrets, fly.toml and the database are not taken back"


def tidying(app: App, *, must: bool = True) -> list[Step]:
    """Plan the end of what a deploy that died has left over; `must`: as of `RemoveMachines`."""
    left = app.left_over
    if not left:
        return []
    # Where what goes takes requests, what stays must. Before a cut-over, who cordoned the old ones meant it.
    stay = () if any(each.cordoned for each in left) else app.without(left).machines
    serve = tuple(each.id for each in stay if each.cordoned)
    return [RemoveMachines(app.name, tuple(each.id for each in left), serve, must)]


def _require(environment: Deployed, app: App) -> None:
    if not app.exists:
        raise NothingChangedError(
            f"there is no app {environment.app}, or this login does not see it",
            hint=f"myhealth setup {environment.name}",
        )
    there = {each.name for each in app.secrets}
    missing = [name for name in environment.secrets if name not in there]
    if missing:
        raise NothingChangedError(
            f"{environment.app} has no {', '.join(missing)}", hint=f"myhealth setup {environment.name}"
        )


def _gates(environment: Deployed, image: Image, url: str) -> tuple[Step, ...]:
    return (
        WakeMachines(environment.app),
        CompareImages(environment.app, image),
        ProbeMachines(url, environment.app, image.release),
        AskCanary(url),
    )


def _return(environment: Deployed, back: Image, url: str) -> tuple[Step, ...]:
    # Proven before, and probed again right after: flyctl need not look for ten seconds too.
    deployed = DeployImage(
        environment.app, environment.config, back, migrate=False, smoke=False, rolling=True
    )
    return (deployed, *_gates(environment, back, url))


def _way_back(app: App, target: Image) -> Image | None:
    """Return the newest proven image; where nothing was ever proven, what runs now.

    The target itself is no way back: an image that was proven and fails now (the model is down, a secret is
    wrong) is not mended by an older one.
    """
    back = app.good[0] if app.good else app.running
    return None if back is None or back.same(target) else back


def before(app: App) -> Image:
    """Return the newest proven image that does not run now. Raises NothingChangedError: there is none.

    Where a rollback was killed, or failed: the one that it was to. What it fled from is newer.
    """
    running = app.running
    if (half := app.going_back) is not None:
        return half.runs
    for each in app.good:
        if running is None or not each.same(running):
            return each
    raise NothingChangedError(
        f"{app.name} has no other image that is known to be good",
        hint="choose a release: `myhealth status`, then `myhealth rollback N`",
    )


def _numbered(app: App, number: int) -> Image:
    found = next((each for each in app.releases if each.version == number), None)
    if found is None or not found.image_ref:
        known = ", ".join(str(each.version) for each in app.releases if each.image_ref) or "none"
        raise NothingChangedError(
            f"{app.name} has no release {number} with an image", hint=f"those it has: {known}"
        )
    release = next((each.release for each in app.good if each.ref == found.image_ref), None)
    return Image(found.image_ref, release or label_of(found.image_ref))


def label_of(ref: str) -> str:
    """Return what to call an image of which nothing else is known: its tag, else its digest's start."""
    name, _, digest = ref.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return tag if colon else digest.removeprefix("sha256:")[:12] or "unknown"
