"""Samples as the wire has them, and a way to store them without HTTP."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import msgspec

from agent_backend.db import health
from agent_backend.db.metrics import METRICS, MetricName
from agent_backend.db.pool import Database
from agent_backend.db.samples import Sample, check

WATCH = ("Anna's Apple Watch", "watch")
PHONE = ("Anna's iPhone", "phone")
SCALE = ("Scale", "other")

_SAMPLES = msgspec.json.Decoder(list[Sample])


def at(text: str) -> dt.datetime:
    """Return a moment; UTC unless the text says otherwise."""
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _measured(start: str, end: str, source: tuple[str, str], **more: Any) -> dict[str, Any]:
    stretch = {"start": at(start).isoformat(), "end": at(end).isoformat()}
    return {"id": str(uuid4()), **stretch, "source": source[0], "device": source[1], **more}


def quantity(
    metric: MetricName, start: str, end: str, value: float, source: tuple[str, str] = WATCH, **more: Any
) -> dict[str, Any]:
    unit = METRICS[metric].unit
    return _measured(
        start, end, source, **{"kind": "quantity", "metric": metric, "value": value, "unit": unit, **more}
    )


def sleep(stage: str, start: str, end: str, source: tuple[str, str] = WATCH, **more: Any) -> dict[str, Any]:
    return _measured(start, end, source, **{"kind": "sleep", "stage": stage, **more})


def workout(
    activity: str, start: str, end: str, source: tuple[str, str] = WATCH, **more: Any
) -> dict[str, Any]:
    duration = (at(end) - at(start)).total_seconds()
    return _measured(
        start, end, source, **{"kind": "workout", "activity": activity, "duration_s": duration, **more}
    )


def summary(date: str, kcal: float, **more: Any) -> dict[str, Any]:
    return {"kind": "activity_summary", "id": str(uuid4()), "date": date, "active_energy_kcal": kcal, **more}


def parsed(samples: list[dict[str, Any]]) -> list[Sample]:
    return _SAMPLES.decode(msgspec.json.encode(samples))


async def upload(db: Database, user_id: UUID, *samples: dict[str, Any]) -> health.Stored:
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    return await health.store(db, user_id, check(parsed(list(samples)), now))
