from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from myhealth_cli.deploy.state import KEPT, Image, Machine, crashes, noted

from .apps import app, image, machine

A, B, C = image("a"), image("b"), image("c")
images = st.sampled_from("abcdef").map(image)
notes = st.lists(images, unique=True, max_size=KEPT).map(tuple)


def test_an_image_that_was_built_again_is_another_one_though_it_has_the_name() -> None:
    again = Image(B.ref, A.release)
    assert not A.same(again)
    assert A.same(Image("registry.fly.io/myhealth-agents-staging:tag", A.release)), (
        "one of them has no digest"
    )
    assert A.same(Image(A.ref, "another name"))


def test_of_two_notes_the_first_machine_has_the_newer() -> None:
    # A rollback to A that was killed between the machines: the second still knows B.
    assert app(machine(1, A, good=(A,)), machine(2, A, good=(B, A))).good == (A,)
    assert app(machine(1, A), machine(2, A, good=(A,))).good == (A,)
    assert app().good == ()


@given(images, notes, st.booleans(), images)
def test_what_is_proven_is_first_and_once_and_never_made_up(
    proven: Image,
    before: tuple[Image, ...],
    forget: bool,  # noqa: FBT001 - drawn
    fled: Image,
) -> None:
    after = noted(proven, before, forget_newer=forget, fled=fled)
    assert after[0] == proven
    assert len(set(after)) == len(after) <= KEPT
    assert set(after) <= {proven, *before}
    if not forget:
        assert [each for each in before if each in after[1:]] == list(after[1:])


@given(notes.filter(bool), images)
def test_nobody_goes_back_to_what_was_fled_from(before: tuple[Image, ...], target: Image) -> None:
    fled = before[0]
    after = noted(target, before, forget_newer=True, fled=fled)
    assert target == fled or fled not in after


def test_a_crash_counts_by_flys_clock() -> None:
    def seen(*times: int) -> Machine:
        ended = {"exit_event": {"exit_code": 1}}
        events = [{"type": "exit", "timestamp": time, "request": ended} for time in times]
        return msgspec.convert({"id": "m1", "events": events}, Machine)

    # Whatever the clock here says: what is there when the watch begins is old, what comes then is new.
    assert seen().changed_ms == 0
    assert seen(5, 7).changed_ms == 7
    assert crashes(seen(5, 7), seen(5, 7).changed_ms) == []
    assert crashes(seen(5, 7, 8), seen(5, 7).changed_ms) == ["exit code 1"]
