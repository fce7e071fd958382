"""The laws of load balancing."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fly_emulator.edge.balance import Candidate, Decision, Forward, Refuse, Wait, Wake, Want, decide

IDS = tuple("abcdef")
REGIONS = ("fra", "ams", "iad")


def first(pool: Sequence[Candidate]) -> Candidate:
    return pool[0]


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    size = draw(st.integers(0, 6))
    soft = draw(st.integers(0, 4))
    hard = draw(st.none() | st.integers(soft, 6))
    return [
        Candidate(
            id=IDS[at],
            region=(region := draw(st.sampled_from(REGIONS))),
            status=draw(st.sampled_from(("ready", "ready", "waking", "unready", "asleep", "leaving"))),
            load=draw(st.integers(0, 7)),
            soft=soft,
            hard=hard,
            autostart=draw(st.booleans()),
            draining=draw(st.booleans()),
            distance=REGIONS.index(region),
        )
        for at in range(size)
    ]


ids = st.sampled_from(IDS)
wants = st.builds(
    Want,
    force=st.none() | ids,
    prefer=st.none() | ids,
    regions=st.lists(st.sampled_from((*REGIONS, "eu", "any")), max_size=2, unique=True).map(tuple),
    force_region=st.booleans(),
    exclude=st.frozensets(ids, max_size=2),
    avoid=st.frozensets(ids, max_size=2),
)
plain = st.just(Want())


def chosen(fleet: list[Candidate], decision: Decision) -> Candidate | None:
    name = decision.machine if isinstance(decision, Forward | Wake) else None
    return next((one for one in fleet if one.id == name), None)


@given(fleets(), wants)
def test_only_a_ready_machine_with_room_gets_a_request(fleet: list[Candidate], want: Want) -> None:
    decision = decide(fleet, want, first, "oldest")
    if isinstance(decision, Forward):
        one = chosen(fleet, decision)
        assert one is not None
        assert one.status == "ready"
        assert one.hard is None or one.load < one.hard


@given(fleets(), wants)
def test_a_forced_instance_is_the_only_one(fleet: list[Candidate], want: Want) -> None:
    decision = decide(fleet, want, first, "oldest")
    if want.force is not None:
        if isinstance(decision, Forward | Wake):
            assert decision.machine == want.force
        assert (decision == Refuse("PR02")) == all(one.id != want.force for one in fleet)
    elif isinstance(decision, Forward | Wake):
        assert decision.machine not in want.exclude


@given(fleets(), wants)
def test_only_machines_with_autostart_are_started(fleet: list[Candidate], want: Want) -> None:
    decision = decide(fleet, want, first, "oldest")
    by_id = {one.id: one for one in fleet}
    if isinstance(decision, Wake):
        one = by_id[decision.machine]
        assert one.status == "waking" or (one.status == "asleep" and one.autostart)
    if isinstance(decision, Forward) and decision.start is not None:
        one = by_id[decision.start]
        assert one.status == "asleep"
        assert one.autostart
        assert not any(other.status == "waking" for other in fleet if want == Want())


@given(fleets(), plain)
def test_the_closest_region_with_room_and_there_the_least_loaded(fleet: list[Candidate], want: Want) -> None:
    decision = decide(fleet, want, first, "oldest")
    if not isinstance(decision, Forward):
        return
    one = chosen(fleet, decision)
    assert one is not None
    ready = [other for other in fleet if other.status == "ready" and other.has_room]
    rivals = [other for other in ready if not other.draining] or ready
    assert one.distance == min(other.distance for other in rivals)
    near = [other for other in rivals if other.distance == one.distance]
    assert one.load == min(other.load for other in near)
    if one.load >= one.soft:
        assert not any(other.below_soft for other in near)


@given(fleets(), plain)
def test_another_is_started_only_when_all_that_run_are_at_their_soft_limit(
    fleet: list[Candidate], want: Want
) -> None:
    decision = decide(fleet, want, first, "oldest")
    running = [one for one in fleet if one.status == "ready"]
    ready = [one for one in running if not one.draining] or running
    if isinstance(decision, Forward) and decision.start is not None:
        assert all(not one.below_soft for one in ready)
    if any(one.below_soft and one.has_room for one in ready):
        assert isinstance(decision, Forward)
        assert decision.start is None


@given(fleets(), plain)
def test_a_request_is_refused_only_when_nothing_can_ever_take_it(fleet: list[Candidate], want: Want) -> None:
    decision = decide(fleet, want, first, "oldest")
    hope = any(one.status in {"ready", "waking", "unready"} for one in fleet) or any(
        one.autostart for one in fleet
    )
    assert isinstance(decision, Refuse) != hope
    if decision == Wait("full"):
        assert all(one.status != "asleep" or not one.autostart for one in fleet)


def test_the_order_of_wakes() -> None:
    fleet = [
        Candidate(id="a", region="iad", status="asleep", distance=1),
        Candidate(id="b", region="fra", status="asleep"),
        Candidate(id="c", region="fra", status="asleep"),
    ]
    assert decide(fleet, Want(), first, "oldest") == Wake("b")
    assert decide(fleet, Want(), first, "newest") == Wake("c")
    assert decide(fleet, Want(), lambda pool: pool[-1], "random") == Wake("c")
    assert decide(fleet, Want(prefer="c"), first, "oldest") == Wake("c")
    assert decide(fleet, Want(avoid=frozenset("b")), first, "oldest") == Wake("c")
    assert decide(fleet, Want(regions=("us",), force_region=True), first, "oldest") == Wake("a")
