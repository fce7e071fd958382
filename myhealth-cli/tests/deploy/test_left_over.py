"""What a bluegreen deploy that was killed has left, at each of its steps, and what a plan does about it."""

from __future__ import annotations

import msgspec
import pytest

from myhealth_cli.deploy import lock, plan
from myhealth_cli.deploy.state import App, Image, Machine, Secret

from .apps import STAGING, app, image, machine

URL = "https://example.test"
A, B = image("a"), image("b")
BEFORE, NOW = "1700000000", "1800000000"
DONE_WITH = "safe_to_destroy"


def made(
    number: int, runs: Image, tag: str = "", *, cordoned: bool = False, state: str = "started"
) -> Machine:
    """Return a machine with bluegreen's tag."""
    found = machine(number, runs, good=(A,), state=state)
    metadata = {**found.config.metadata, **({"fly_bluegreen_deployment_tag": tag} if tag else {})}
    config = msgspec.structs.replace(found.config, metadata=metadata)
    return msgspec.structs.replace(found, config=config, cordoned=cordoned)


def old(tag: str = BEFORE, *, cordoned: bool = False, state: str = "started") -> tuple[Machine, Machine]:
    return made(1, A, tag, cordoned=cordoned, state=state), made(2, A, tag, cordoned=cordoned, state=state)


def new(*, cordoned: bool = False, runs: Image = B) -> tuple[Machine, Machine]:
    return made(3, runs, NOW, cordoned=cordoned), made(4, runs, NOW, cordoned=cordoned)


OLD, NEW = ["machine1", "machine2"], ["machine3", "machine4"]
BROKEN = msgspec.structs.replace(old(DONE_WITH)[0], state="failed")
HALF_OUT = (made(1, A, BEFORE, cordoned=True), made(2, A, BEFORE))
LEFT = {
    "one is made": ((*old(), new(cordoned=True)[0]), NEW[:1]),
    "all are made": ((*old(), *new(cordoned=True)), NEW),
    "made by the first bluegreen ever": ((*old(""), *new(cordoned=True)), NEW),
    "made, of the same image": ((*old(), *new(cordoned=True, runs=A)), NEW),
    "made, and one old one was taken out before by hand": ((*HALF_OUT, *new(cordoned=True)), NEW),
    "made, and old ones have marks of one that died before": ((*old(DONE_WITH), *new(cordoned=True)), NEW),
    "one takes requests": ((*old(), new()[0], new(cordoned=True)[1]), NEW),
    "all take requests": ((*old(), *new()), NEW),
    "one old one is marked": ((old()[0], made(2, A, DONE_WITH), *new()), NEW),
    "the old ones are marked": ((*old(DONE_WITH), *new()), NEW),
    "marked, of the same image": ((*old(DONE_WITH), *new(runs=A)), OLD),
    "marked, and an old one is broken": ((BROKEN, old(DONE_WITH)[1], *new()), OLD),
    "marking failed, and they are cordoned": ((*old(cordoned=True), *new()), NEW),
    "they are stopped": ((*old(DONE_WITH, cordoned=True, state="stopped"), *new()), NEW),
    "one is destroyed": ((made(2, A, DONE_WITH, cordoned=True), *new()), OLD[1:]),
    "one is destroyed, and all were taken out by hand": (
        (made(2, A, DONE_WITH, cordoned=True), *new(cordoned=True)),
        OLD[1:],
    ),
}
DIFFERENT = {name: each for name, each in LEFT.items() if app(*each[0]).running is None}
NOTHING = {
    "no machine": (),
    "never bluegreen": old(""),
    "rolling, killed in between": (made(1, A, BEFORE), made(2, B, BEFORE)),
    "cordoned by hand": (made(1, A, BEFORE, cordoned=True), made(2, A, BEFORE)),
    "scaled up since": (*new(), made(5, B)),
    "scaled up since, and one was taken out by hand": (new(cordoned=True)[0], new()[1], made(5, B)),
}


@pytest.mark.parametrize(("machines", "left"), LEFT.values(), ids=LEFT)
def test_what_is_left_over_is_removed_first(machines: tuple[Machine, ...], left: list[str]) -> None:
    found = app(*machines)
    assert [each.id for each in found.left_over] == left
    wanted = plan.deploy(STAGING, found, B, build=None, bake=0, url=URL)
    removed = wanted.steps[0]
    assert isinstance(removed, plan.RemoveMachines)
    assert (removed.ids, removed.must) == (tuple(left), True)
    # After the cut-over all that stay have the image: only the gates are passed.
    stay = {each.release for each in machines if each.id not in left}
    deploys = any(isinstance(each, plan.DeployImage) for each in wanted.steps)
    assert deploys == (stay != {B.release})
    back = wanted.recovery[0]
    assert isinstance(back, plan.DeployImage)
    assert back.image == A


@pytest.mark.parametrize("machines", [machines for machines, _ in LEFT.values()], ids=LEFT)
def test_somebody_serves_at_every_moment(machines: tuple[Machine, ...]) -> None:
    """Of what takes requests now not all go, or what stays is put back into service before."""
    removed = plan.tidying(app(*machines))[0]
    assert isinstance(removed, plan.RemoveMachines)
    served = {each.id for each in machines if not each.cordoned}
    assert served - set(removed.ids) or removed.serve or not served
    # Who was taken out by hand before the cut-over is not put back by us.
    if not served & set(removed.ids):
        assert removed.serve == ()


@pytest.mark.parametrize(("machines", "left"), LEFT.values(), ids=LEFT)
def test_what_is_proven_stays_while_it_is_whole(machines: tuple[Machine, ...], left: list[str]) -> None:
    stays = [each for each in machines if each.id not in left]
    whole = sum(each.release == A.release for each in machines) == 2
    if whole and BROKEN not in machines:
        assert {each.release for each in stays} == {A.release}


@pytest.mark.parametrize(("machines", "left"), LEFT.values(), ids=LEFT)
def test_the_lock_is_noted_on_a_machine_that_stays(machines: tuple[Machine, ...], left: list[str]) -> None:
    for ordered in (machines, machines[::-1]):
        assert lock.bearer(STAGING.app, ordered).id not in left


@pytest.mark.parametrize("machines", NOTHING.values(), ids=NOTHING)
def test_nothing_else_is_taken_for_left_over(machines: tuple[Machine, ...]) -> None:
    assert app(*machines).left_over == ()


@pytest.mark.parametrize(("machines", "left"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_rollback_removes_it_and_goes_back_to_what_was_proven_last(
    machines: tuple[Machine, ...], left: list[str]
) -> None:
    removed, deployed, *_ = plan.rollback(STAGING, app(*machines), None, bake=0, url=URL).steps
    assert isinstance(removed, plan.RemoveMachines)
    assert (removed.ids, removed.must) == (tuple(left), False)
    assert isinstance(deployed, plan.DeployImage)
    assert deployed.image == A


def test_machines_that_differ_are_not_alike() -> None:
    found = made(2, B)
    other = msgspec.structs.replace(found, image_ref=msgspec.structs.replace(found.image_ref, tag="other"))
    assert app(made(1, A), found).alike
    assert not app(made(1, A), other).alike
    assert App("empty", secrets=(Secret("X"),)).alike
