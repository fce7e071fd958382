"""What the epic says of prices and free tiers, and what was found of it; each with source and month."""

from __future__ import annotations

from datetime import date
from typing import Final

import msgspec

STALE_DAYS: Final = 180
"""Prices that were read so long ago are to be read again."""


class Fact(msgspec.Struct, frozen=True):
    """A statement, where it was read (in a stored copy), and in which month."""

    says: str
    source: str
    read: date


FACTS: Final = (
    Fact(
        "Fly.io has no free tier for new organisations; the epic's three free VMs are a legacy plan's",
        "fly.io/docs/about/pricing",
        date(2026, 11, 1),
    ),
    Fact(
        "shared-cpu-1x in fra, always on, a month: 256 MB $2.24, 512 MB $3.69, 1 GB $6.57; by the second",
        "fly.io/docs/about/pricing",
        date(2026, 11, 1),
    ),
    Fact(
        "a stopped machine costs $0.15 a month for each GB of its root filesystem; egress in the EU $0.02/GB",
        "fly.io/docs/about/pricing",
        date(2026, 11, 1),
    ),
    Fact(
        "Supabase pauses free projects after about a week of little activity",
        "supabase.com/docs",
        date(2026, 11, 1),
    ),
)
