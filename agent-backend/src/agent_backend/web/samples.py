"""Health samples in, daily figures out."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from agent_backend.db import health, profiles
from agent_backend.db.metrics import METRICS, MetricName
from agent_backend.db.samples import MAX_SAMPLES, Sample, check
from agent_backend.errors import FieldError, InvalidRequest
from agent_backend.web.operations import Call, operation, reply

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_DAYS = 400
FIRST_YEAR, LAST_YEAR = 1900, 2100


class SampleBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Samples of any kinds, in any order."""

    samples: Annotated[list[Sample], Meta(max_length=MAX_SAMPLES)]


class DailyQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which days of which metric, both ends included."""

    metric: MetricName
    start: dt.date
    end: dt.date


class DailyFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One day: `value` of a cumulative metric; `min`, `avg`, `max` and `last` of a discrete one."""

    date: dt.date
    value: float | UnsetType = UNSET
    min: float | UnsetType = UNSET
    avg: float | UnsetType = UNSET
    max: float | UnsetType = UNSET
    last: float | UnsetType = UNSET
    samples: int
    sources: list[str]
    """Best first; of a cumulative metric only those that count."""


class DailyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The days that have data, in order; a day that is not there has none."""

    metric: MetricName
    unit: str
    time_zone: str
    days: list[DailyFigure]


@operation(
    "PUT",
    "/v1/health/samples",
    body=SampleBatch,
    max_body=MAX_BODY_BYTES,
    strict_text=False,
    limit="uploads",
    summary="Store health samples",
    description="A batch is stored whole or not at all. Sending it again changes nothing; where an id is "
    "known with other content, the newer upload replaces it. Ids are scoped to the user and the kind. Values "
    "arrive in the metric's unit or one that converts to it.",
    tag="health data",
    replies={200: health.Stored},
    problems=(403, 503),
)
async def put_samples(call: Call[SampleBatch, None]) -> Response:
    """Check and store; what is wrong is named by index, as `$.samples[17].value`."""
    await call.services.machine.consents.require(call.user_id, "health_data")
    batch = check(call.body.samples, dt.datetime.now(dt.UTC))
    return reply(await health.store(call.services.database, call.user_id, batch))


@operation(
    "GET",
    "/v1/health/daily",
    query=DailyQuery,
    summary="Read a metric by day",
    description="Days are those of the profile's time zone, at most 400. Overlapping sources are counted "
    "once: at each instant the watch before the phone before others. Days without data are absent, not zero.",
    tag="health data",
    replies={200: DailyFigures},
    problems=(503,),
)
async def get_daily(call: Call[None, DailyQuery]) -> Response:
    """Answer with the days that have data."""
    query = call.query
    _check_period(query.start, query.end)
    database = call.services.database
    profile = await profiles.read(database, call.user_id)
    days = await health.daily(database, call.user_id, query.metric, query.start, query.end, profile.time_zone)
    return reply(
        DailyFigures(
            metric=query.metric,
            unit=METRICS[query.metric].unit,
            time_zone=profile.time_zone,
            days=[_figure(day) for day in days],
        )
    )


def _check_period(start: dt.date, end: dt.date) -> None:
    if start.year < FIRST_YEAR:
        raise _invalid("start", f"is before {FIRST_YEAR}")
    if end.year > LAST_YEAR:
        raise _invalid("end", f"is after {LAST_YEAR}")
    if end < start:
        raise _invalid("end", "is before the start")
    if (end - start).days >= MAX_DAYS:
        raise _invalid("end", f"makes more than {MAX_DAYS} days")


def _figure(day: health.Day) -> DailyFigure:
    if day.total is not None:
        return DailyFigure(date=day.date, value=day.total, samples=day.samples, sources=day.sources)
    return DailyFigure(
        date=day.date,
        min=_known(day.minimum),
        avg=_known(day.average),
        max=_known(day.maximum),
        last=_known(day.latest),
        samples=day.samples,
        sources=day.sources,
    )


def _known(value: float | None) -> float | UnsetType:
    return UNSET if value is None else value


def _invalid(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"query.{name}: {reason}", errors=(FieldError(f"query.{name}", reason),))


OPERATIONS = (put_samples, get_daily)
