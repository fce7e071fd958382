from __future__ import annotations

from collections.abc import AsyncGenerator
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from agent_backend.app import create_app
from agent_backend.settings import Settings
from agent_backend.web.samples import MAX_BODY_BYTES

from ..consenting import agree
from ..health_data import PHONE, WATCH, quantity, sleep
from .serving import headers_for, serving, settings_for

STEPS = quantity("steps", "2026-01-02T22:30", "2026-01-02T23:30", 100)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return settings_for(tmp_path, database_url)


@pytest.fixture
async def http(settings: Settings) -> AsyncGenerator[aiohttp.ClientSession]:
    async with (
        serving(create_app(settings), settings) as url,
        aiohttp.ClientSession(url, headers=headers_for(settings)) as session,
    ):
        await agree(session)
        yield session


async def put(http: aiohttp.ClientSession, path: str, body: Any, **options: Any) -> tuple[int, Any]:
    async with http.put(path, json=body, **options) as response:
        return response.status, await response.json(content_type=None)


async def get(http: aiohttp.ClientSession, path: str, **options: Any) -> tuple[int, Any]:
    async with http.get(path, **options) as response:
        return response.status, await response.json(content_type=None)


async def test_samples_go_in_and_days_of_the_users_time_zone_come_out(http: aiohttp.ClientSession) -> None:
    batch = {"samples": [STEPS, sleep("core", "2026-01-01T23:00", "2026-01-02T06:00")]}
    counts = {"received": 2, "stored": 2, "unchanged": 0, "replaced": 0}
    assert await put(http, "/v1/health/samples", batch) == (200, counts)
    again = {"received": 2, "stored": 0, "unchanged": 2, "replaced": 0}
    assert await put(http, "/v1/health/samples", batch) == (200, again)
    asked = "/v1/health/daily?metric=steps&start=2026-01-01&end=2026-01-05"
    day = {"samples": 1, "sources": [WATCH[0]]}
    assert await get(http, asked) == (
        200,
        {
            "metric": "steps",
            "unit": "count",
            "time_zone": "UTC",
            "days": [{"date": "2026-01-02", "value": 100.0, **day}],
        },
    )
    await put(http, "/v1/me/profile", {"time_zone": "Europe/Berlin", "locale": "de-DE"})
    status, told = await get(http, asked)
    assert (status, told["time_zone"]) == (200, "Europe/Berlin")
    assert told["days"] == [
        {"date": "2026-01-02", "value": 50.0, **day},
        {"date": "2026-01-03", "value": 50.0, **day},
    ]


async def test_a_discrete_metric_has_a_spread(http: aiohttp.ClientSession) -> None:
    beats = [
        quantity("heart_rate", f"2026-01-02T1{n}:00", f"2026-01-02T1{n}:00", 60 + n, PHONE) for n in range(3)
    ]
    await put(http, "/v1/health/samples", {"samples": beats})
    _, told = await get(http, "/v1/health/daily?metric=heart_rate&start=2026-01-02&end=2026-01-02")
    spread = {"min": 60.0, "avg": 61.0, "max": 62.0, "last": 62.0}
    assert told["days"] == [{"date": "2026-01-02", **spread, "samples": 3, "sources": [PHONE[0]]}]


async def test_a_value_too_small_to_divide_does_not_make_its_days_unreadable(
    http: aiohttp.ClientSession,
) -> None:
    least = quantity("steps", "2026-01-02T10:00", "2026-01-05T10:00", 5e-324)
    assert (await put(http, "/v1/health/samples", {"samples": [least]}))[0] == 200
    status, told = await get(http, "/v1/health/daily?metric=steps&start=2026-01-01&end=2026-01-06")
    assert status == 200
    assert [day["value"] for day in told["days"]] == [0, 0, 0, 0]


async def test_another_user_sees_nothing_and_harms_nothing(
    http: aiohttp.ClientSession, settings: Settings
) -> None:
    ben = {"headers": headers_for(settings, "ben")}
    await agree(http, **ben["headers"])
    await put(http, "/v1/health/samples", {"samples": [STEPS]})
    asked = "/v1/health/daily?metric=steps&start=2026-01-02&end=2026-01-02"
    _, told = await get(http, asked, **ben)
    assert told["days"] == []
    _, counts = await put(http, "/v1/health/samples", {"samples": [STEPS | {"value": 9}]}, **ben)
    assert counts["stored"] == 1
    _, told = await get(http, asked)
    assert told["days"][0]["value"] == 100


WRONG_BATCHES: list[tuple[str, Any]] = [
    ("$.samples[2].value", [STEPS, STEPS, STEPS | {"value": "7"}]),
    ("$.samples[1].metric", [STEPS, STEPS | {"metric": "mood"}]),
    ("$.samples[1].surprise", [STEPS, STEPS | {"surprise": 1}]),
    ("$.samples[1].kind", [STEPS, STEPS | {"kind": "mood"}, STEPS]),
    ("$.samples[1].id", [STEPS, {key: value for key, value in STEPS.items() if key != "id"}]),
    ("$.samples[1].unit", [STEPS, STEPS | {"unit": "kg"}]),
    ("$.samples[0].source", [STEPS | {"source": "\x00"}]),
    ("$.samples[1]", [STEPS, 7]),
    ("$.samples", [STEPS] * 2001),
    ("$.samples", None),
]


async def test_a_batch_with_something_wrong_is_refused_whole_and_names_it(
    http: aiohttp.ClientSession,
) -> None:
    for field, samples in WRONG_BATCHES:
        status, problem = await put(http, "/v1/health/samples", {"samples": samples})
        assert (status, [error["field"] for error in problem["errors"]]) == (422, [field])
    _, told = await get(http, "/v1/health/daily?metric=steps&start=2026-01-02&end=2026-01-02")
    assert told["days"] == []


async def test_a_batch_above_the_limit_is_cut(http: aiohttp.ClientSession) -> None:
    body = BytesIO(b'{"samples":[' + b" " * MAX_BODY_BYTES + b"]}")
    headers = {"Content-Type": "application/json"}
    async with http.put("/v1/health/samples", data=body, headers=headers) as response:
        assert response.status == 413


async def test_a_full_batch_passes(http: aiohttp.ClientSession) -> None:
    batch = [STEPS | {"id": str(uuid4()), "value": n} for n in range(2000)]
    status, counts = await put(http, "/v1/health/samples", {"samples": batch})
    assert (status, counts["stored"]) == (200, 2000)


WRONG_PERIODS = [
    ("metric=mood&start=2026-01-01&end=2026-01-02", "query.metric"),
    ("metric=steps&start=2026-01-01", "query.end"),
    ("metric=steps&start=2026-01-02&end=2026-01-01", "query.end"),
    ("metric=steps&start=2025-01-01&end=2026-02-05", "query.end"),
    ("metric=steps&start=1899-12-31&end=1900-01-01", "query.start"),
    ("metric=steps&start=2100-12-31&end=2101-01-01", "query.end"),
    ("metric=steps&start=tomorrow&end=2026-01-01", "query.start"),
    ("metric=steps&start=2026-01-01&end=2026-01-02&user=ben", "query.user"),
]


async def test_a_period_that_cannot_be_read_is_named(http: aiohttp.ClientSession) -> None:
    for query, field in WRONG_PERIODS:
        status, problem = await get(http, f"/v1/health/daily?{query}")
        assert (status, [error["field"] for error in problem["errors"]]) == (422, [field])
    status, _ = await get(http, "/v1/health/daily?metric=steps&start=2025-01-01&end=2026-02-04")
    assert status == 200


async def test_without_a_token_nothing_is_taken(http: aiohttp.ClientSession) -> None:
    for path in ("/v1/health/samples", "/v1/me/profile"):
        status, _ = await put(http, path, {"samples": []}, headers={"Authorization": "Bearer x"})
        assert status == 401
