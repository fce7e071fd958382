"""What an app at Fly is, read from Fly: machines, releases, secrets by name, what we noted on the machines.

Nothing of a deploy is kept in memory or in files: after a kill the next run reads this and goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from myhealth_cli.deploy.errors import FlyctlError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from myhealth_cli.deploy.flyctl import Flyctl

GOOD: Final = "myhealth_good"
"""Metadata of every machine: the proven images, newest first, as JSON. flyctl carries it over deploys."""
KEPT: Final = 5
FLED: Final = "ROLLBACK_FROM"
"""Variable of a machine that a rollback has deployed, of no meaning to the server."""
_NO_APP: Final = "could not find app"
"""What GraphQL says of an app that is not there, or not this token's."""
_RELEASE_COMMAND: Final = "fly_app_release_command"
_GENERATION: Final = "fly_bluegreen_deployment_tag"
_REPLACED: Final = "safe_to_destroy"
ASLEEP: Final = frozenset({"stopped", "suspended"})
RUNNING: Final = "started"
WAITING: Final = frozenset({"staged", "partial"})
"""Of a secret: not in force on every machine before the next deploy."""


class Image(msgspec.Struct, frozen=True):
    """An image and the release it is: RELEASE of its machines, what /version answers."""

    ref: str
    release: str

    def __str__(self) -> str:
        return f"{self.ref} (release {self.release})"

    def same(self, other: Image) -> bool:
        """Say whether both mean one image: by digest where both have one.

        A release is only a name: an image that was built again, or by somebody else, can have that of one
        that was proven.
        """
        ours, theirs = self.ref.partition("@")[2], other.ref.partition("@")[2]
        if ours and theirs:
            return ours == theirs
        return self.ref == other.ref or self.release == other.release


class ImageRef(msgspec.Struct, frozen=True):
    """An image as a machine runs it."""

    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    @property
    def exact(self) -> str:
        """The reference that can mean nothing else, as far as a digest is known: NAME:TAG@DIGEST."""
        tagged = f"{self.name}:{self.tag}" if self.tag else self.name
        return f"{tagged}@{self.digest}" if self.digest else tagged

    def is_of(self, ref: str) -> bool:
        """Say whether `ref` names this image: by digest if it has one, else by name and tag."""
        name, _, digest = ref.partition("@")
        if digest:
            return digest == self.digest
        base, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
        return base.removeprefix("docker.io/") == self.name.removeprefix("docker.io/") and tag == (
            self.tag or "latest"
        )


class ExitEvent(msgspec.Struct, frozen=True):
    """How a machine's process ended."""

    exit_code: int | None = None
    oom_killed: bool = False
    requested_stop: bool = False


class _Request(msgspec.Struct, frozen=True):
    exit_event: ExitEvent | None = None


class Event(msgspec.Struct, frozen=True):
    """An event of a machine; `timestamp` in milliseconds."""

    type: str = ""
    timestamp: int = 0
    request: _Request | None = None

    @property
    def crash(self) -> str:
        """What crashed, or nothing."""
        ended = self.request.exit_event if self.request else None
        if self.type != "exit" or ended is None or (not ended.exit_code and not ended.oom_killed):
            return ""
        if ended.requested_stop and not ended.oom_killed:
            return ""
        return "out of memory" if ended.oom_killed else f"exit code {ended.exit_code}"


class Check(msgspec.Struct, frozen=True):
    """A health check's last result; `output`: what it got."""

    name: str = ""
    status: str = ""
    output: str = ""


class Config(msgspec.Struct, frozen=True):
    """The part of a machine's configuration we look at."""

    metadata: dict[str, str] = {}
    env: dict[str, str] = {}
    image: str = ""


class Machine(msgspec.Struct, frozen=True):
    """One machine."""

    id: str
    state: str = ""
    region: str = ""
    cordoned: bool = False
    """Fly's proxy sends it nothing."""
    image_ref: ImageRef = ImageRef()
    config: Config = Config()
    events: tuple[Event, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def release(self) -> str:
        """What it was told it is (keys of `config.env` come in lower case)."""
        return self.config.env.get("release", "")

    @property
    def fled(self) -> str:
        """The image that ran before the rollback that made it so; empty: no rollback did."""
        return self.config.env.get(FLED, "")

    @property
    def mispulled(self) -> bool:
        """Whether it runs another image than flyctl has resolved and told it to run."""
        _, _, told = self.config.image.partition("@")
        return bool(told and self.image_ref.digest and told != self.image_ref.digest)

    @property
    def asleep(self) -> bool:
        """Whether nothing runs in it and a request may start it."""
        return self.state in ASLEEP

    @property
    def generation(self) -> int:
        """When the bluegreen deploy that made it began (seconds since 1970); 0: none did, or `replaced`."""
        tag = self.config.metadata.get(_GENERATION, "")
        return int(tag) if tag.isdecimal() else 0

    @property
    def replaced(self) -> bool:
        """Whether bluegreen is done with it: others take requests instead."""
        return self.cordoned or self.config.metadata.get(_GENERATION) == _REPLACED

    @property
    def changed_ms(self) -> int:
        """When something happened to it last: milliseconds since 1970 by Fly's clock; 0: nothing is known."""
        return max((each.timestamp for each in self.events), default=0)

    @property
    def died(self) -> str:
        """How its process ended when it did last, if that was a crash and nothing runs in it now."""
        exits = [each for each in self.events if each.type == "exit"]
        last = max(exits, key=lambda each: each.timestamp, default=Event())
        return "" if self.state == RUNNING else last.crash

    @property
    def broken(self) -> bool:
        """Whether it is known to serve nobody: its process died, or its check says no."""
        failing = self.state == RUNNING and any(each.status == "critical" for each in self.checks)
        return self.state == "failed" or bool(self.died) or failing

    @property
    def runs(self) -> Image:
        """What it runs."""
        return Image(self.image_ref.exact, self.release)

    @property
    def good(self) -> tuple[Image, ...]:
        """The proven images noted on it; nothing if the note is unreadable."""
        try:
            return msgspec.json.decode(self.config.metadata.get(GOOD, "[]"), type=tuple[Image, ...])
        except msgspec.DecodeError:
            return ()


class Release(msgspec.Struct, frozen=True):
    """A release as `flyctl releases` lists it."""

    version: int = 0
    status: str = ""
    image_ref: str = ""
    created_at: str = ""


class Secret(msgspec.Struct, frozen=True):
    """A secret's name; its value is nobody's business here."""

    name: str
    status: str = ""


class App(msgspec.Struct, frozen=True):
    """What is known of an app."""

    name: str
    exists: bool = True
    machines: tuple[Machine, ...] = ()
    releases: tuple[Release, ...] = ()
    secrets: tuple[Secret, ...] = ()

    @property
    def good(self) -> tuple[Image, ...]:
        """The proven images, newest first: the note of the first machine that carries one.

        Notes are written in this order, so of two that differ (the writer was killed) the first is newer.
        """
        return next((each.good for each in self.machines if each.good), ())

    @property
    def running(self) -> Image | None:
        """The image that every machine has; None if there is none or they differ."""
        found = {each.runs for each in self.machines}
        return found.pop() if len(found) == 1 else None

    @property
    def going_back(self) -> Machine | None:
        """A machine that a rollback has deployed which never came to its end; None: there was no such one."""
        for each in self.machines:
            if each.fled and any(good.same(each.runs) for good in self.good[1:]):
                return each
        return None

    @property
    def left_over(self) -> tuple[Machine, ...]:
        """What a bluegreen deploy that died has left: of its two generations, the one that is to go.

        flyctl makes new machines cordoned, uncordons them when all are healthy, marks the old ones as safe to
        destroy, cordons them, stops them, destroys them (internal/command/deploy/strategy_bluegreen.go). It
        tags the new ones with the time, so that they differ from the old ones, and clears nothing up after a
        kill; the next bluegreen then refuses to work, or takes all of them for the old ones.

        The old ones were proven and the new ones are not: the new ones go, also after the cut-over, while the
        old ones are all there and none is broken. The marks alone say little: old ones that stay keep them.
        """
        newest = max((each.generation for each in self.machines), default=0)
        new = tuple(each for each in self.machines if each.generation == newest)
        old = tuple(each for each in self.machines if each.generation != newest)
        if not newest or not old:
            return ()
        marked, fewer = any(each.replaced for each in old), len(old) < len(new)
        images = [{each.image_ref.exact for each in some} for some in (new, old)]
        differ = images[0].isdisjoint(images[1])
        # Before the cut-over the new ones serve nobody. With old ones gone, somebody has taken all out since.
        if any(each.cordoned for each in new) and not (marked and fewer):
            # Some serve, beside others of their image: scaled up since, and one was taken out by hand.
            return new if marked or differ or all(each.cordoned for each in new) else ()
        # Between the last uncordon and the first mark both take requests.
        if not marked and not (len(new) == len(old) and differ):
            return ()
        proven = all(any(each.same(one.runs) for each in self.good) for one in new)
        return old if proven or fewer or any(each.broken for each in old) else new

    def without(self, machines: Collection[Machine]) -> App:
        """Return the app as it is once these machines are gone."""
        gone = {each.id for each in machines}
        return msgspec.structs.replace(
            self, machines=tuple(each for each in self.machines if each.id not in gone)
        )

    @property
    def alike(self) -> bool:
        """Whether all machines have images of one name and tag, as far as flyctl's bluegreen looks."""
        return len({(each.image_ref.repository, each.image_ref.tag) for each in self.machines}) <= 1

    def has(self, image: Image) -> bool:
        """Say whether every machine has this image and release."""
        return bool(self.machines) and all(
            each.image_ref.is_of(image.ref) and each.release == image.release and not each.mispulled
            for each in self.machines
        )

    def runs(self, image: Image) -> bool:
        """Say whether every machine has this image and release, and no secret waits for a deploy."""
        waiting = any(each.status.lower() in WAITING for each in self.secrets)
        return self.has(image) and not waiting


async def machines(fly: Flyctl, app: str) -> tuple[Machine, ...]:
    """Return the app's machines by id, without those of release commands. Raises FlyctlError."""
    found = await fly.read(list[Machine], "machine", "list", "--app", app)
    return tuple(sorted((each for each in found if _serves(each)), key=lambda each: each.id))


def _serves(machine: Machine) -> bool:
    group: Any = machine.config.metadata.get("fly_process_group", "app")
    return group != _RELEASE_COMMAND and machine.state not in {"destroyed", "destroying", "replaced"}


async def read(fly: Flyctl, name: str) -> App:
    """Read everything about an app; one that this login does not see does not exist. Raises FlyctlError.

    It is asked for by name: a deploy token may not list apps (docs/design/ci.md).
    """
    try:
        listed = await fly.read(list[Release], "releases", "--app", name, "--image")
    except FlyctlError as error:
        if _NO_APP in str(error).lower():
            return App(name, exists=False)
        raise
    kept = await fly.read(list[Secret], "secrets", "list", "--app", name)
    return App(
        name=name,
        machines=await machines(fly, name),
        releases=tuple(sorted(listed, key=lambda each: -each.version)),
        secrets=tuple(kept),
    )


def crashes(machine: Machine, after: int) -> list[str]:
    """Return what crashed on a machine after an event of Fly's (`changed_ms`): our clock may be another."""
    return [each.crash for each in machine.events if each.timestamp > after and each.crash]


def noted(
    image: Image, before: Sequence[Image], *, forget_newer: bool, fled: Image | None = None
) -> tuple[Image, ...]:
    """Return the proven images with `image` in front; `forget_newer`: without those before it so far.

    `fled`: what ran before a rollback. It is forgotten, and where `image` was never noted all before it is.
    """
    place = _place(image, before)
    if forget_newer and fled is not None:
        place = _place(fled, before) if place is None else place
        before = [each for each in before[place or 0 :] if not each.same(fled)]
    elif forget_newer:
        before = before[place or 0 :]
    return (image, *(each for each in before if not each.same(image)))[:KEPT]


def _place(image: Image, among: Sequence[Image]) -> int | None:
    return next((place for place, each in enumerate(among) if each.same(image)), None)
