from __future__ import annotations

import os
from collections import defaultdict
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_backend.web.buckets import Buckets, Rate

RATES = st.builds(Rate, burst=st.integers(1, 20), interval=st.floats(0.01, 50))
ROUNDING = 1e-6


class Asked(NamedTuple):
    key: int
    after: float
    """Seconds since the one before."""
    cost: int


def asked(keys: int) -> st.SearchStrategy[list[Asked]]:
    gaps = st.sampled_from([0.0, 0.001, 0.1, 1.0, 30.0]) | st.floats(0, 200)
    return st.lists(st.builds(Asked, st.integers(0, keys - 1), gaps, st.integers(1, 5)), max_size=120)


@given(rate=RATES, slots=st.sampled_from([1, 2, 8, 1024]), asked=asked(12))
@settings(deadline=None)
def test_no_key_gets_more_than_its_burst_and_what_time_brings_whoever_else_asks(
    rate: Rate, slots: int, asked: list[Asked]
) -> None:
    # With few slots every key is pushed about by others all the time: nothing of that gives anything back.
    buckets, now = Buckets(rate, slots), 1.0
    taken: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for each in asked:
        now += each.after
        cost = min(each.cost, rate.burst)
        if buckets.take(b"%d" % each.key, now, cost) == 0:
            taken[each.key].append((now, cost))
    for times in taken.values():
        for first, (begin, _) in enumerate(times):
            total = 0
            for moment, cost in times[first:]:
                total += cost
                assert total <= rate.burst + (moment - begin) / rate.interval + ROUNDING


@given(rate=RATES, asked=asked(1))
@settings(deadline=None)
def test_a_key_alone_gets_all_of_it(rate: Rate, asked: list[Asked]) -> None:
    buckets, now = Buckets(rate), 1.0
    tokens, since = float(rate.burst), now
    for each in asked:
        now += each.after
        tokens, since = min(rate.burst, tokens + (now - since) / rate.interval), now
        cost = min(each.cost, rate.burst)
        wait = buckets.take(b"me", now, cost)
        if wait == 0:
            tokens -= cost
        assert (wait == 0) or tokens < cost + ROUNDING
        assert tokens > -ROUNDING


@given(rate=RATES, asked=asked(3))
@settings(deadline=None)
def test_who_waits_as_long_as_told_is_admitted(rate: Rate, asked: list[Asked]) -> None:
    buckets, now = Buckets(rate, 2), 1.0
    for each in asked:
        now += each.after
        key = b"%d" % each.key
        wait = buckets.take(key, now, each.cost)
        if wait:
            now += wait
            assert buckets.take(key, now, each.cost) == 0


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(Rate(burst=2, interval=10.0))
    waits = [round(buckets.take(b"me", 100.0), 6) for _ in range(6)]
    assert waits == [0, 0, 10, 10, 10, 10]
    assert buckets.wait(b"me", 100.0) == buckets.wait(b"me", 100.0) == 10
    assert buckets.wait(b"me", 110.0) == 0


def test_a_flood_of_addresses_neither_resets_one_nor_keeps_others_out() -> None:
    buckets = Buckets(Rate(burst=30, interval=6.0))
    for _ in range(30):
        buckets.take(b"guesser", 1.0)
    for _ in range(20_000):  # more than there are slots
        buckets.take(os.urandom(8), 1.0)
    assert buckets.take(b"guesser", 1.0) > 0
    refused = sum(buckets.take(os.urandom(8), 1.0) > 0 for _ in range(1000))
    assert refused == 0  # each of the flood has left one failure: nobody's bucket is empty by that


def test_a_thousand_who_are_used_up_hardly_touch_anybody_else() -> None:
    buckets = Buckets(Rate(burst=30, interval=6.0))
    for _ in range(1000):
        key = os.urandom(8)
        for _ in range(30):
            buckets.take(key, 1.0)
    refused = sum(buckets.take(os.urandom(8), 1.0) > 0 for _ in range(2000))
    assert refused < 40  # (1000 / 16384)^2 = 0.4 %, and here is 2 %
