"""What `myhealth status` sees at a glance."""

from __future__ import annotations

import msgspec
import pytest

from myhealth_cli.deploy import lock, status
from myhealth_cli.deploy.state import App, Check, Event, Machine, Release, Secret

from .apps import STAGING, app, image, machine

NOW = 1_800_000_000.0
A, B = image("a"), image("b")
RELEASED = "2027-01-15T07:00:00Z"
"""An hour before NOW."""


def event(kind: str, ago: float, **exit_event: object) -> Event:
    request = {"exit_event": exit_event} if exit_event else None
    at = int((NOW - ago) * 1000)
    return msgspec.convert({"type": kind, "timestamp": at, "request": request}, Event)


def crash(ago: float) -> Event:
    return event("exit", ago, exit_code=1)


def seen(*events: Event, state: str = "started", checks: tuple[Check, ...] = (), runs: str = "b") -> Machine:
    made = machine(1, image(runs), good=(B, A), state=state)
    return msgspec.structs.replace(made, events=events, checks=checks)


def look(*machines: Machine, **more: object) -> status.Status:
    made = app(*machines, releases=(Release(2, "complete", B.ref, RELEASED),))
    return status.look(msgspec.structs.replace(made, **more), "staging", "https://x", NOW)


PASSING = Check("http", "passing")
CRITICAL = Check("http", "critical", '503 {"errors":[{"field":"database"}]}')
WARNING = Check("http", "warning", "waiting")


@pytest.mark.parametrize(
    ("one", "kind", "summary"),
    [
        (seen(event("start", 30), checks=(PASSING,)), "awake", "serving"),
        (
            seen(event("exit", 30, exit_code=0), state="stopped", checks=(CRITICAL,)),
            "asleep",
            "asleep: the next request wakes it",
        ),
        (seen(event("start", 31), crash(30), state="stopped"), "crashed", "BROKEN"),
        (seen(crash(30), state="restarting"), "crashed", "BROKEN"),
        (seen(crash(20), crash(10), event("start", 1)), "crashed", "BROKEN"),
        (seen(state="failed"), "crashed", "BROKEN"),
        (seen(event("start", 300), checks=(CRITICAL,)), "failing", "BROKEN"),
        (seen(event("start", 300), checks=(WARNING,)), "failing", "BROKEN"),
        (seen(event("start", 3), checks=(WARNING,)), "starting", "changing: look again in a minute"),
        (seen(state="replacing"), "changing", "changing: look again in a minute"),
    ],
)
def test_what_a_machine_is(one: Machine, kind: str, summary: str) -> None:
    found = look(one)
    assert (found.machines[0].is_, found.summary) == (kind, summary)


def test_a_crash_of_the_release_before_is_not_this_ones() -> None:
    found = look(seen(event("start", 60), crash(7200), checks=(PASSING,)))
    assert (found.machines[0].crashes, found.problems) == ([], [])


def test_what_is_wrong_is_said_in_words() -> None:
    broken = look(seen(event("start", 60), checks=(CRITICAL,)))
    assert broken.problems == [
        'machine machine1 runs and fails its check: http critical: 503 {"errors":[{"field":"database"}]}'
    ]
    assert "myhealth logs staging --no-follow" in status.words(broken, NOW)
    restarted = look(seen(crash(90), crash(80), event("start", 70), checks=(PASSING,)))
    assert restarted.summary == "serving, with problems"
    assert restarted.problems == [
        "machine machine1 has crashed before it ran: 2 times with this release, exit code 1"
    ]
    unproven = look(seen(checks=(PASSING,), runs="c"))
    assert unproven.problems == ["release release-c is NOT proven: no gate was passed"]
    two = look(
        seen(), msgspec.structs.replace(machine(2, A, good=(B, A)), events=(crash(9),), state="stopped")
    )
    assert two.summary == "1 of 2 machines BROKEN"
    assert "the machines run different images" in two.problems
    staged = look(seen(), secrets=(Secret("DATABASE_URL", "Staged"),))
    assert staged.problems == ["secrets wait for a deploy: DATABASE_URL"]
    assert look().summary == "nothing has been deployed"


def test_what_is_taken_out_of_service_neither_serves_nor_wakes() -> None:
    """docs/runbooks/restore.md cordons every machine and stops it."""

    def cordoned(one: Machine) -> Machine:
        return msgspec.structs.replace(one, cordoned=True)

    asleep = msgspec.structs.replace(seen(state="stopped"), id="machine2")
    found = look(cordoned(seen(state="stopped")))
    assert found.summary == "out of service: every machine is cordoned"
    [problem] = found.problems
    assert problem.startswith("machine machine1 is cordoned: no request reaches or wakes it")
    assert f"`fly machine uncordon machine1 --app {STAGING.app}`" in problem
    assert look(cordoned(seen()), asleep).summary == "asleep: the next request wakes it, with problems"
    assert look(seen(), cordoned(asleep)).summary == "serving, with problems"


def locked(one: Machine, until: float = NOW + 60) -> Machine:
    metadata = {**one.config.metadata, lock.LOCK: f"github-7 {until:.0f}"}
    return msgspec.structs.replace(one, config=msgspec.structs.replace(one.config, metadata=metadata))


def generation(one: Machine, tag: str, *, cordoned: bool = False) -> Machine:
    metadata = {**one.config.metadata, "fly_bluegreen_deployment_tag": tag}
    made = msgspec.structs.replace(one, config=msgspec.structs.replace(one.config, metadata=metadata))
    return msgspec.structs.replace(made, cordoned=cordoned)


@pytest.mark.parametrize(
    ("environment", "verbs"),
    [
        ("staging", "`myhealth deploy staging` or `myhealth rollback --environment staging`"),
        ("production", "`myhealth promote` or `myhealth rollback`"),
    ],
)
def test_what_a_deploy_has_left_and_who_removes_it(environment: str, verbs: str) -> None:
    old = generation(machine(1, A, good=(A,)), "safe_to_destroy", cordoned=True)
    new = generation(machine(2, B, good=(A,)), "1800000000")
    found = status.look(app(old, new), environment, "https://x", NOW)
    assert found.problems == [f"a deploy has died and left machine2: {verbs} removes that first"]
    assert "NOT proven, left over" in status.words(found, NOW)
    # And not that by hand, which it does itself.
    assert "uncordon" not in status.words(found, NOW)
    busy = status.look(app(locked(old), new), environment, "https://x", NOW)
    assert busy.problems == []
    assert busy.summary == "serving; a deploy is under way"
    assert "NOT proven, of the deploy that is under way" in status.words(busy, NOW)


def test_machines_that_differ_in_a_deploy_that_is_under_way_are_no_problem() -> None:
    two = machine(1, A, good=(A,)), machine(2, B, good=(A,))
    assert look(*two).problems == ["the machines run different images"]
    busy = look(locked(two[0]), two[1])
    assert (busy.problems, busy.summary) == ([], "serving; a deploy is under way")


def test_who_deploys_and_where_a_rollback_would_go() -> None:
    found = look(locked(seen()))
    assert found.deploying == status.Deploying("github-7", "2027-01-15T08:01:00Z")
    text = status.words(found, NOW)
    assert "github-7 is deploying; if it was killed: until 2027-01-15T08:01:00Z" in text
    assert "`myhealth rollback --environment staging` would go to: release-a" in text
    assert f"v2 complete {RELEASED} (1 h ago)" in text
    assert look(locked(seen(), NOW - 1)).deploying is None
    alone = status.look(App("x", machines=(machine(1, A, good=(A,)),)), "production", "https://x", NOW)
    assert "`myhealth rollback` would go to: nothing: no other image was proven" in status.words(alone, NOW)
