"""From an Apple Health export to daily figures, through every layer, against the export's own summaries."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from myhealth_cli.apple_health import Export
from myhealth_cli.apple_health.generate import generate_export
from myhealth_cli.apple_health.samples import ActivitySummary

from .conftest import Pair
from .stack import Backend, Site

DAYS = 60
END = dt.date(2026, 11, 1)


async def _import(site: Site, backend: Backend, user: str, path: Path) -> str:
    token = site.headers(user)["Authorization"].removeprefix("Bearer ")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "myhealth_cli", "import", str(path), "--consent",
        "--url", backend.url, "--token", token,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def _summaries(path: Path) -> dict[str, float]:
    with Export(path) as export:
        rings = [sample for sample in export.samples() if isinstance(sample, ActivitySummary)]
    return {each.date: each.active_energy_kcal for each in rings}


async def _daily(http: aiohttp.ClientSession, backend: Backend, metric: str) -> dict[str, Any]:
    start = END - dt.timedelta(days=DAYS)
    address = f"{backend.url}/v1/health/daily?metric={metric}&start={start}&end={END}"
    async with http.get(address) as response:
        assert response.status == 200
        return await response.json()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_daily_energy_agrees_with_the_activity_summaries(
    site: Site, pair: Pair, tmp_path: Path, seed: int
) -> None:
    """Watch and iPhone count the same steps and calories; a sum would be far off, best-source-wins is not."""
    path = tmp_path / "export.zip"
    await asyncio.to_thread(generate_export, path, seed=seed, days=DAYS, end_date=END, density=0.2)
    user = f"walker{seed}"
    profile = {"time_zone": "Europe/Berlin", "locale": "de-DE"}
    async with aiohttp.ClientSession(headers=site.headers(user)) as http:
        async with http.put(f"{pair.a.url}/v1/me/profile", json=profile) as response:
            assert response.status == 200
        await _import(site, pair.a, user, path)
        daily = await _daily(http, pair.a, "active_energy")
    summaries = _summaries(path)
    figures = {day["date"]: day["value"] for day in daily["days"]}
    assert len(summaries) >= DAYS - 1
    close = [day for day, kcal in summaries.items() if abs(figures.get(day, 0) - kcal) <= 0.02 * kcal]
    assert len(close) >= 0.9 * len(summaries), f"{len(close)} of {len(summaries)}"


async def test_an_import_may_be_repeated(site: Site, pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    await asyncio.to_thread(generate_export, path, seed=4, days=5, end_date=END, density=0.1)
    async with aiohttp.ClientSession(headers=site.headers("repeater")) as http:
        await _import(site, pair.b, "repeater", path)
        first = await _daily(http, pair.b, "steps")
        assert first["days"]
        await _import(site, pair.b, "repeater", path)
        assert await _daily(http, pair.b, "steps") == first
