"""Who is dead: only who was watched standing still for a lease time, expired by the database's clock."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_backend.db.leases import Heartbeat
from agent_backend.turns.recovery import Watch

LEASE = 10.0
OTHER = UUID(int=7)
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def beat(alive_until: float, database_time: float) -> Heartbeat:
    return Heartbeat(
        "other",
        OTHER,
        EPOCH + dt.timedelta(seconds=alive_until),
        EPOCH + dt.timedelta(seconds=database_time),
    )


def test_expired_at_first_sight_is_not_dead() -> None:
    """After a database outage every lease is expired; whoever comes back first must not steal."""
    watch = Watch(LEASE)
    for now in (0, 3, 6, 9):
        assert watch.observe([beat(0, 1000 + now)], now) == []
    assert watch.observe([beat(0, 1010)], now=10) == [OTHER]


@pytest.mark.parametrize("seconds", [6, 60])
def test_an_outage_nobody_could_beat_in_makes_nobody_dead(seconds: int) -> None:
    """Both beat until the database went; whoever comes back first must not steal from the other."""
    watch = Watch(LEASE)
    for now in (0, 3, 6):
        watch.observe([beat(now + LEASE, now)], now)
    back = 6 + seconds
    for later in (0, 3, 6, 9):
        now = back + later
        assert watch.observe([beat(6 + LEASE, now + 20)], now) == []
    assert watch.observe([beat(6 + LEASE, back + 30)], now=back + 10) == [OTHER]


def test_a_beat_starts_the_watch_anew() -> None:
    watch = Watch(LEASE)
    for now in (0, 4, 8):
        watch.observe([beat(0, 100 + now)], now)
    for now in (9, 12, 15, 18):
        assert watch.observe([beat(99, 100 + now)], now) == []
    assert watch.observe([beat(99, 119)], now=19) == [OTHER]


def test_standing_still_within_the_lease_is_not_dead() -> None:
    watch = Watch(LEASE)
    for now in range(0, 100, 4):
        assert watch.observe([beat(500, 100 + now)], now) == []


def test_who_leaves_and_returns_is_watched_anew() -> None:
    watch = Watch(LEASE)
    watch.observe([beat(0, 100)], now=0)
    watch.observe([], now=5)
    for now in (10, 14, 18):
        assert watch.observe([beat(0, 100 + now)], now) == []


def test_the_long_dead_are_named_for_burial() -> None:
    watch = Watch(LEASE)
    for now in range(0, 100, 4):
        watch.observe([beat(0, 0)], now)
    assert watch.long_dead(now=99) == []
    assert watch.long_dead(now=100) == [OTHER]


@given(st.lists(st.tuples(st.floats(0.1, 6), st.booleans()), min_size=1, max_size=40))
def test_nobody_is_dead_before_a_lease_time_of_watching_without_a_beat(
    steps: list[tuple[float, bool]],
) -> None:
    watch = Watch(LEASE)
    now = 0.0
    alive_until = -1.0
    last_change: float | None = None
    looked = 0.0
    for seconds, beats in steps:
        now += seconds
        if beats:
            # A beat that comes too late still is a beat: it must be watched standing still again.
            alive_until = now - 5.0
        if last_change is None or beats or now - looked > LEASE / 2:
            last_change = now
        looked = now
        dead = watch.observe([beat(alive_until, now)], now)
        if dead:
            assert now - last_change >= LEASE
            assert alive_until < now
