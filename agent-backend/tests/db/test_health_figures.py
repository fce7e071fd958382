"""Daily figures and nights against a slot-by-slot reference: overlaps, clock changes, travel, corrections."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agent_backend.db import health
from agent_backend.db.metrics import MetricName
from agent_backend.db.pool import Database

from ..health_data import PHONE, SCALE, WATCH, at, quantity, sleep, upload
from .reference import SLOT, STAGES, Piece, nights, spreads, totals

SOURCES = (WATCH, ("Old Watch", "watch"), PHONE, SCALE, ("App", "other"))
PLACES = (
    ("Europe/Berlin", "2026-03-29"),  # an hour is missing
    ("Europe/Berlin", "2025-10-26"),  # an hour comes twice
    ("America/Havana", "2026-11-01"),  # midnight comes twice
    ("Asia/Beirut", "2026-03-29"),  # there is no midnight
    ("Pacific/Apia", "2011-12-30"),  # there is no such day
    ("Australia/Lord_Howe", "2026-04-05"),  # half an hour comes twice
    ("Asia/Kathmandu", "2026-01-02"),
)
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    # A user of its own keeps each example apart.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def pieces(draw: st.DrawFn, day: str, *, stages: bool = False, least: int = 0) -> list[Piece]:
    """Draw samples around noon UTC of a day, on the grid, a day and a half to either side."""
    origin = at(day) + dt.timedelta(hours=12)
    drawn: list[Piece] = []
    for _ in range(draw(st.integers(1, 14))):
        start = draw(st.integers(-144, 144))
        length = draw(st.one_of(st.integers(least, 6), st.integers(least, 200)))
        drawn.append(
            Piece(
                id=draw(st.uuids()),
                start=origin + start * SLOT,
                end=origin + (start + length) * SLOT,
                value=draw(st.integers(0, 50)),
                source=draw(st.sampled_from(SOURCES)),
                what=draw(st.sampled_from(STAGES)) if stages else "",
            )
        )
    assume(len({piece.id for piece in drawn}) == len(drawn))
    return drawn


def wire(metric: MetricName, piece: Piece) -> dict[str, Any]:
    start, end = piece.start.isoformat(), piece.end.isoformat()
    return quantity(metric, start, end, piece.value, piece.source, id=str(piece.id))


async def read(db: Database, user: UUID, metric: MetricName, day: str, zone: str) -> list[health.Day]:
    start = dt.date.fromisoformat(day)
    return await health.daily(
        db, user, metric, start - dt.timedelta(days=4), start + dt.timedelta(days=5), zone
    )


@EXAMPLES
@given(data=st.data(), place=st.sampled_from(PLACES), travel=st.sampled_from(["UTC", "America/New_York"]))
async def test_totals_equal_the_reference_after_every_upload(
    database: Database, data: st.DataObject, place: tuple[str, str], travel: str
) -> None:
    zone, day = place
    user = uuid4()
    known: dict[UUID, Piece] = {}
    for _ in range(data.draw(st.integers(1, 3))):
        batch = data.draw(pieces(day))
        for piece in batch[: len(known)]:  # some correct what is there already
            if data.draw(st.booleans()):
                corrected = data.draw(st.sampled_from(sorted(known)))
                batch[batch.index(piece)] = piece._replace(id=corrected)
        known |= {piece.id: piece for piece in batch}
        await upload(database, user, *(wire("steps", piece) for piece in batch))
        for each in (zone, data.draw(st.sampled_from([zone, travel]))):
            told = {
                day.date: (day.total, set(day.sources))
                for day in await read(database, user, "steps", day, each)
            }
            expected = totals(list(known.values()), each)
            assert told.keys() == expected.keys()
            for date, (total, sources) in expected.items():
                assert told[date][0] == pytest.approx(total, abs=1e-6)
                assert told[date][1] == sources


@EXAMPLES
@given(data=st.data(), place=st.sampled_from(PLACES))
async def test_spreads_equal_the_reference(
    database: Database, data: st.DataObject, place: tuple[str, str]
) -> None:
    zone, day = place
    user = uuid4()
    drawn = data.draw(pieces(day))
    await upload(database, user, *(wire("heart_rate", piece) for piece in drawn))
    told = {each.date: each for each in await read(database, user, "heart_rate", day, zone)}
    expected = spreads(drawn, zone)
    assert told.keys() == expected.keys()
    for date, spread in expected.items():
        each = told[date]
        assert (each.minimum, each.maximum, each.latest) == (spread.minimum, spread.maximum, spread.latest)
        assert each.average == pytest.approx(spread.average)
        assert each.samples == spread.samples
        assert each.total is None


@EXAMPLES
@given(data=st.data(), place=st.sampled_from([place for place in PLACES if place[0] != "Pacific/Apia"]))
async def test_nights_equal_the_reference(
    database: Database, data: st.DataObject, place: tuple[str, str]
) -> None:
    zone, day = place
    user = uuid4()
    drawn = data.draw(pieces(day, stages=True, least=1))
    await upload(
        database,
        user,
        *(
            sleep(each.what, each.start.isoformat(), each.end.isoformat(), each.source, id=str(each.id))
            for each in drawn
        ),
    )
    start = dt.date.fromisoformat(day)
    told = await health.sleep(
        database, user, start - dt.timedelta(days=4), start + dt.timedelta(days=6), zone
    )
    assert {(each.night, each.stage): each.minutes for each in told} == pytest.approx(nights(drawn, zone))


async def test_a_watch_that_is_laid_down_is_stood_in_for(database: Database) -> None:
    user = uuid4()
    await upload(
        database,
        user,
        quantity("steps", "2026-01-02T10:00", "2026-01-02T11:00", 600, PHONE),
        quantity("steps", "2026-01-02T10:15", "2026-01-02T10:45", 900, WATCH),
        quantity("steps", "2026-01-02T23:00", "2026-01-03T01:00", 100, SCALE),
    )
    days = await read(database, user, "steps", "2026-01-02", "UTC")
    assert [(str(day.date), day.total) for day in days] == [
        ("2026-01-02", pytest.approx(300 + 900 + 50)),
        ("2026-01-03", pytest.approx(50)),
    ]
    assert days[0].sources == [WATCH[0], PHONE[0], SCALE[0]]


async def test_what_is_sent_twice_under_two_ids_counts_once(database: Database) -> None:
    user = uuid4()
    twice = [quantity("steps", "2026-01-02T10:00", "2026-01-02T11:00", 600) for _ in range(2)]
    await upload(database, user, *twice)
    assert [day.total for day in await read(database, user, "steps", "2026-01-02", "UTC")] == [600]
