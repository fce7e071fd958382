"""What daily figures and nights are, computed slot by slot: slow, obvious, and independent of the SQL.

Times lie on a grid of SLOT; every rule is applied to one slot at a time.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

SLOT = dt.timedelta(minutes=15)
RANKS = {"watch": 1, "phone": 2, "other": 3}
STAGES = ("deep", "rem", "core", "awake", "asleep", "in_bed")


class Piece(NamedTuple):
    """A quantity (`what` empty) or a stretch of sleep (`what` its stage)."""

    id: UUID
    start: dt.datetime
    end: dt.datetime
    value: float
    source: tuple[str, str]
    what: str = ""


def _source_rank(source: tuple[str, str]) -> tuple[int, bytes]:
    return RANKS[source[1]], source[0].encode()


def _order(piece: Piece) -> tuple[dt.datetime, float, float, UUID]:
    return piece.start, -piece.end.timestamp(), -piece.value, piece.id


def _winner(pieces: list[Piece]) -> Piece | None:
    """Return the one that counts: the best source's, of those the one that began first."""
    return min(pieces, key=lambda piece: (_source_rank(piece.source), _order(piece)), default=None)


def _slots(pieces: list[Piece]) -> list[dt.datetime]:
    first, last = min(piece.start for piece in pieces), max(piece.end for piece in pieces)
    return [first + n * SLOT for n in range((last - first) // SLOT + 1)]


def totals(pieces: list[Piece], zone: str) -> dict[dt.date, tuple[float, set[str]]]:
    """Return each day's total and the sources that count."""
    days: dict[dt.date, tuple[float, set[str]]] = {}

    def add(moment: dt.datetime, piece: Piece, share: float) -> None:
        day = moment.astimezone(ZoneInfo(zone)).date()
        total, sources = days.get(day, (0.0, set[str]()))
        days[day] = (total + share, sources | {piece.source[0]})

    for slot in _slots(pieces) if pieces else []:
        lasting = [piece for piece in pieces if piece.start <= slot < piece.end]
        winner = _winner(lasting)
        if winner is not None:
            add(slot, winner, winner.value * (SLOT / (winner.end - winner.start)))
        # An instant is covered by what lasts over it; without that it counts whole.
        point = _winner([piece for piece in pieces if piece.start == piece.end == slot])
        covered = [piece for piece in lasting if point and _covers(piece, point)]
        if point is not None and not covered:
            add(slot, point, point.value)
    return days


def _covers(lasting: Piece, point: Piece) -> bool:
    return _source_rank(lasting.source) <= _source_rank(point.source)


class Spread(NamedTuple):
    """A day of a discrete metric."""

    minimum: float
    average: float
    maximum: float
    latest: float
    samples: int


def spreads(pieces: list[Piece], zone: str) -> dict[dt.date, Spread]:
    """Return each day's spread; the average is one over ten-minute slots of the day."""
    by_day: defaultdict[dt.date, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_day[piece.start.astimezone(ZoneInfo(zone)).date()].append(piece)
    return {day: _spread(day, group, zone) for day, group in by_day.items()}


def _spread(day: dt.date, pieces: list[Piece], zone: str) -> Spread:
    midnight = dt.datetime.combine(day, dt.time(), ZoneInfo(zone)).astimezone(dt.UTC)
    slots: defaultdict[int, list[float]] = defaultdict(list)
    for piece in pieces:
        slots[(piece.start - midnight) // dt.timedelta(minutes=10)].append(piece.value)
    values = [piece.value for piece in pieces]
    means = [sum(group) / len(group) for group in slots.values()]
    _, latest = max((piece.start, piece.value) for piece in pieces)
    return Spread(min(values), sum(means) / len(means), max(values), latest, len(values))


def nights(pieces: list[Piece], zone: str) -> dict[tuple[dt.date, str], float]:
    """Return the minutes of each stage of each night; being in bed is a sheet of its own."""
    minutes: defaultdict[tuple[dt.date, str], float] = defaultdict(float)
    for slot in _slots(pieces) if pieces else []:
        local = slot.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        night = (local + dt.timedelta(hours=12)).date()
        lasting = [piece for piece in pieces if piece.start <= slot < piece.end]
        for in_bed in (True, False):
            sheet = [piece for piece in lasting if (piece.what == "in_bed") == in_bed]
            if sheet:
                best = min(sheet, key=lambda each: (_source_rank(each.source), STAGES.index(each.what)))
                minutes[night, best.what] += SLOT.total_seconds() / 60
    return dict(minutes)
