"""What holds of every plan, whatever an app is: also one that a killed deploy, or somebody else, has left."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from myhealth_cli.deploy import plan
from myhealth_cli.deploy.errors import NothingChangedError
from myhealth_cli.deploy.plan import Plan
from myhealth_cli.deploy.state import App, Image, Machine, noted

from .apps import PRODUCTION, STAGING, app, image, machine

URL = "https://example.test"
GATES = [plan.WakeMachines, plan.CompareImages, plan.ProbeMachines, plan.AskCanary]
# Three digests under two names: a name can be that of another image, as after a second build.
images = st.builds(
    Image, st.sampled_from([image(letter).ref for letter in "abc"]), st.sampled_from(["one", "two"])
)
notes = st.lists(images, unique_by=lambda each: each.ref, max_size=3).map(tuple)


@st.composite
def apps(draw: st.DrawFn, name: str = STAGING.app) -> App:
    def one(number: int) -> Machine:
        state = draw(st.sampled_from(["started", "stopped", "failed"]))
        return machine(number, draw(images), good=draw(notes), state=state)

    return app(*(one(number) for number in range(draw(st.integers(0, 3)))), name=name)


def digest(of: Image) -> str:
    return of.ref.partition("@")[2]


def gated(wanted: Plan, target: Image) -> None:
    """See that all gates come after the last change, each for this image, and the note last."""
    kinds = [type(step) for step in wanted.steps if not isinstance(step, plan.DeployImage)]
    assert kinds == [*GATES, plan.Bake, plan.NoteGood]
    for step in wanted.steps:
        if isinstance(step, plan.DeployImage | plan.CompareImages | plan.NoteGood):
            assert digest(step.image) == digest(target)


def leads_back(wanted: Plan, found: App, target: Image) -> None:
    """See that the way back is to what was proven, without a migration and through the gates."""
    if not wanted.recovery:
        assert not found.good or found.good[0].same(target)
        return
    first, *rest = wanted.recovery
    assert isinstance(first, plan.DeployImage)
    assert not first.migrate
    assert first.image == (found.good[0] if found.good else found.running)
    assert digest(first.image) != digest(target)
    assert [type(step) for step in rest] == GATES


@settings(max_examples=50)
@given(apps(), images)
def test_a_deploy(found: App, target: Image) -> None:
    wanted = plan.deploy(STAGING, found, target, build=None, bake=60, url=URL)
    gated(wanted, target)
    leads_back(wanted, found, target)
    deploys = isinstance(wanted.steps[0], plan.DeployImage)
    assert deploys is not found.has(target)


@settings(max_examples=50)
@given(apps(), apps(PRODUCTION.app))
def test_a_promotion_is_of_what_every_machine_of_staging_runs_and_has_proven(
    staging: App, found: App
) -> None:
    try:
        wanted = plan.promote(staging, PRODUCTION, found, bake=60, url=URL)
    except NothingChangedError:
        return
    note = wanted.steps[-1]
    assert isinstance(note, plan.NoteGood)
    assert {each.image_ref.digest for each in staging.machines} == {digest(note.image)}
    assert digest(staging.good[0]) == digest(note.image)
    gated(wanted, note.image)
    leads_back(wanted, found, note.image)


@settings(max_examples=50)
@given(apps(PRODUCTION.app))
def test_rollbacks_end_and_visit_nothing_twice(found: App) -> None:
    visited: list[Image] = [found.running] if found.running else []
    good: Sequence[Image] = found.good
    for _ in range(5):
        try:
            wanted = plan.rollback(PRODUCTION, found, None, bake=0, url=URL)
        except NothingChangedError:
            return
        note = wanted.steps[-1]
        assert isinstance(note, plan.NoteGood)
        assert note.image in good
        assert not any(note.image.same(each) for each in visited)
        visited.append(note.image)
        good = noted(note.image, good, forget_newer=note.forget_newer, fled=note.fled)
        found = app(machine(1, note.image, good=tuple(good)), name=PRODUCTION.app)
    raise AssertionError("it went on for ever")
