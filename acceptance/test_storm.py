"""Storms on the local Fly, short enough for every run; `make soak` is the long one."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from .cloud import FLAVOURS
from .stack import OwnPostgres, emulator, own_postgres
from .storm import cloud_round

SEEDS = [int(seed) for seed in os.environ.get("STORM_SEEDS", "1").split(",")]
"""A seed that ever failed is added to the default for good."""
FAULTS = 10


@pytest.fixture(scope="module")
def database() -> Generator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def model() -> Generator[str]:
    with emulator() as url:
        yield url


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_storm_loses_doubles_and_sticks_nothing(
    database: OwnPostgres, model: str, tmp_path: Path, flavour: str, seed: int
) -> None:
    report = await cloud_round(
        database, model, tmp_path, FLAVOURS[flavour], seed=seed, faults=FAULTS, phones=4
    )
    assert report.broken is None, f"STORM_SEEDS={seed}: {report}"
    assert report.faults.total() >= FAULTS
    assert report.turns > FAULTS
