"""Token buckets for any number of keys in a fixed piece of memory.

A bucket is one number, the *theoretical arrival time* of the generic cell rate algorithm (ITU-T I.371, annex
A): the moment at which the bucket is full again. Nothing has to be refilled, so there are no timers.

The numbers stand in two rows of slots, and a key has one slot in each, chosen by a keyed hash (a count-min
sketch with conservative update: Cormode and Muthukrishnan, 2005; Estan and Varghese, 2002). Its bucket is the
fuller of its two slots, and what it takes is written to both. Therefore

- no key ever gets more than `burst + elapsed / interval`: both its slots stand at its own number or later;
- there is nothing to evict, so no flood of other keys gives a used-up bucket back;
- a key shares its bucket with others only where both its slots are shared. To have a share f of all keys
  refused, an attacker has to keep a share sqrt(f) of the slots used up: sqrt(f) * SLOTS keys of its own, each
  at its full rate. Which keys share slots cannot be known from outside: the hash's key is made at the boot.
"""

from __future__ import annotations

import math
import os
from array import array
from hashlib import blake2b
from typing import NamedTuple

SLOTS = 16_384
"""Per row; a power of two. Two rows of 8-byte numbers: 256 KiB for each kind of limit."""


class Rate(NamedTuple):
    """What one key may do: `burst` at once, and one more every `interval` seconds. Neither is zero."""

    burst: int
    interval: float

    @property
    def window(self) -> int:
        """Seconds in which an empty bucket is full again, rounded up."""
        return math.ceil(self.burst * self.interval)


class Buckets:
    """The buckets of one limit. Times are seconds of a monotonic clock, above zero."""

    __slots__ = ("_key", "_mask", "_slots", "rate")

    def __init__(self, rate: Rate, slots: int = SLOTS) -> None:
        self.rate = rate
        self._key = os.urandom(16)
        self._mask = slots - 1
        self._slots = (array("d", bytes(8 * slots)), array("d", bytes(8 * slots)))

    def take(self, key: bytes, now: float, cost: float = 1.0) -> float:
        """Take `cost` out of the key's bucket and return 0, or take nothing and return the seconds to wait.

        A cost above the burst counts as the burst: it would never be admitted.
        """
        first, second = self._places(key)
        one, other = self._slots
        interval, burst = self.rate.interval, self.rate.burst
        full_at = max(min(one[first], other[second]), now) + min(cost, burst) * interval
        # A clock's own steps are coarser than 1e-9: what is due now must not be put off by rounding.
        wait = full_at - now - burst * interval
        if wait > 1e-9:
            return wait
        one[first] = max(one[first], full_at)
        other[second] = max(other[second], full_at)
        return 0.0

    def wait(self, key: bytes, now: float) -> float:
        """Return the seconds until one can be taken, 0 if it can be now; takes nothing."""
        first, second = self._places(key)
        full_at = max(min(self._slots[0][first], self._slots[1][second]), now)
        return max(0.0, full_at - now - (self.rate.burst - 1) * self.rate.interval)

    def _places(self, key: bytes) -> tuple[int, int]:
        mixed = int.from_bytes(blake2b(key, digest_size=8, key=self._key).digest(), "little")
        return mixed & self._mask, (mixed >> 32) & self._mask
