"""Storms: phones that talk while faults happen, and the calm after them in which every promise is checked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from .audit import audit
from .cloud import Cloud, Flavour
from .conversation import Broken
from .harm import Harm
from .phone import Phone
from .stack import OwnPostgres, Site, with_database

CALM_SECONDS = 45
"""What is unfinished this long after the last fault is stuck."""


async def weather(phones: list[Phone], faults: Awaitable[object]) -> None:
    """Let phones talk while `faults` happen, then wait until each was told the end of all it has sent.

    Raises Broken as soon as a phone was told something wrong, or when something does not end.
    """
    await asyncio.gather(*(phone.start() for phone in phones))
    stop = asyncio.Event()
    following = [asyncio.create_task(phone.follow()) for phone in phones]
    talking = [asyncio.create_task(phone.talk_until(stop)) for phone in phones]
    storm = asyncio.ensure_future(faults)
    try:
        await _unless_broken(storm, [*following, *talking])
        stop.set()
        async with asyncio.timeout(CALM_SECONDS):
            await _unless_broken(asyncio.gather(*talking), following)
            told = asyncio.gather(*(phone.wait_for(turn) for phone in phones for turn in phone.accepted))
            await _unless_broken(told, following)
    except TimeoutError:
        raise Broken(f"stuck: {await _stuck(phones)}") from None
    finally:
        storm.cancel()
        for task in (*following, *talking):
            task.cancel()
        await asyncio.gather(storm, *following, *talking, return_exceptions=True)


async def _stuck(phones: list[Phone]) -> list[str]:
    """Describe turns whose end their phone has not been told of."""
    return [
        f"{turn} of {phone.session} at {phone.talk.after}, resyncs {phone.talk.resyncs}: "
        f"{await phone.state_of(turn)}"
        for phone in phones
        for turn in phone.accepted
        if turn not in phone.talk.ended
    ]


async def _unless_broken(work: asyncio.Future[Any], watched: list[asyncio.Task[None]]) -> None:
    """Wait for `work`, but fail at once when one of the watched tasks fails."""
    while not work.done():
        await asyncio.wait([work, *(t for t in watched if not t.done())], return_when="FIRST_COMPLETED")
        for task in watched:
            if task.done() and (error := task.exception()) is not None:
                work.cancel()
                raise error
    await work


class Report(NamedTuple):
    """What a round did, and what broke in it (None: nothing)."""

    seed: int
    flavour: str
    faults: Counter[str]
    turns: int
    reconnects: int
    broken: str | None


async def cloud_round(
    database: OwnPostgres,
    model_url: str,
    folder: Path,
    flavour: Flavour,
    *,
    seed: int,
    faults: int,
    phones: int,
) -> Report:
    """Run a storm of so many faults on a cloud of its own, with a database of its own, and audit it."""
    rng = random.Random(seed)
    site = Site(
        await new_database(database, f"storm_{seed}_{flavour.name.replace('-', '_')}"), model_url, folder
    )
    await asyncio.to_thread(site.command, "migrate")
    cloud = Cloud(site, folder, flavour)
    reader = await asyncpg.create_pool(site.database_url, min_size=0, max_size=4)
    talkers = [
        Phone(
            site,
            lambda: cloud.url,
            f"user{n}",
            random.Random(rng.random()),
            reader,
            thinks=1.0,
            pauses=(0.5, 2.5),
        )
        for n in range(phones)
    ]
    harm = Harm(cloud, site, database, rng)
    broken: str | None = None
    try:
        await asyncio.to_thread(cloud.start)
        try:
            await weather(talkers, _faults(harm, faults))
            async with reader.acquire() as connection:
                await audit(connection, {turn for phone in talkers for turn in phone.accepted})
            await asyncio.gather(*(phone.compare() for phone in talkers))
        except Broken as error:
            broken = str(error)
            _keep(folder, cloud.log)
    finally:
        for phone in talkers:
            await phone.close()
        reader.terminate()
        await asyncio.to_thread(cloud.end)
        # A round that broke may have ended in the midst of an outage.
        await asyncio.to_thread(database.start)
    done = harm.done + _slept(cloud, flavour)
    turns = sum(len(phone.accepted) for phone in talkers)
    return Report(seed, flavour.name, done, turns, sum(phone.reconnects for phone in talkers), broken)


async def _faults(harm: Harm, count: int) -> None:
    try:
        await harm.run(count)
    finally:
        await harm.calm()


def _slept(cloud: Cloud, flavour: Flavour) -> Counter[str]:
    """Count what nobody injected: machines that fell asleep or were put to sleep while phones talked."""
    own = {"exit": "self_stop", "suspend": "self_suspend"}.get(flavour.sleep)
    found = Counter[str]({own: cloud.count('"action":"falling_asleep"')} if own else {})
    if flavour.autostop != "off":
        found[f"autostop_{flavour.autostop}"] = cloud.count("autostopping machine")
    return +found


def _keep(folder: Path, log: list[str]) -> None:
    """Leave the emulator's log for who looks into a failing seed."""
    (folder / "fly-emulator.log").write_text("\n".join(log), encoding="utf-8")


async def new_database(server: OwnPostgres, name: str) -> str:
    """Make an empty database and return its URL."""
    admin = await asyncpg.connect(server.url)
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {name}")
    finally:
        await admin.close()
    return with_database(server.url, name)
