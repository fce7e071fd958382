"""The demo person's health data: made once, and continued when days have gone by since.

The first day of the demo is kept, because the generator's days depend only on the seed and their number:
a longer export repeats the days that are there already, under the same sample ids.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from myhealth_cli.client import Profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from myhealth_cli.client import Client
    from myhealth_cli.importer import ImportResult, Progress

DAYS: Final = 63
SEED: Final = 7
_DENSITY: Final = 0.2
"""A pulse every few minutes serves a demo as well as one every few seconds, and imports faster."""
_PROFILE: Final = Profile(time_zone="Europe/Berlin", locale="de-DE", birth_year=1988)


class Span(msgspec.Struct, frozen=True):
    """The first and the last whole day of the demo data."""

    start: dt.date
    through: dt.date

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.through - self.start).days + 1


class Demo:
    """The demo data of a state folder; `span` is what the server shall have, up to yesterday."""

    def __init__(self, folder: Path, today: dt.date, *, fresh: bool = False) -> None:
        self._state = folder / "demo.json"
        self._folder = folder
        if fresh:
            self._state.unlink(missing_ok=True)
        self.imported = self._read()
        yesterday = today - dt.timedelta(days=1)
        start = self.imported.start if self.imported else yesterday - dt.timedelta(days=DAYS - 1)
        self.span = Span(start, yesterday)
        self._export: asyncio.Task[Path] | None = None

    def _read(self) -> Span | None:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=Span)
        except (OSError, msgspec.DecodeError):
            return None

    def prepare(self) -> None:
        """Begin to generate, while the servers start, if it looks as if that will be needed."""
        self._remove_exports()  # of runs that were killed
        if self.imported is None or self.imported.through < self.span.through:
            self._begin()

    def _begin(self) -> asyncio.Task[Path]:
        if self._export is None:
            self._export = asyncio.create_task(asyncio.to_thread(self._generate))
        return self._export

    def _generate(self) -> Path:
        from myhealth_cli.apple_health.generate import generate_export  # noqa: PLC0415 - seldom needed

        path = Path(tempfile.mkdtemp(prefix="demo-", dir=self._folder)) / "export.xml"
        generate_export(
            path, seed=SEED, days=self.span.days, end_date=self.span.through, density=_DENSITY, trips=()
        )
        return path

    async def missing(self, client: Client) -> bool:
        """Say whether the server needs the data; data that is not ours is left alone."""
        through = self.imported.through if self.imported else self.span.through
        there = await client.daily("steps", self.span.start.isoformat(), through.isoformat())
        if self.imported is None:
            return not there
        return not there or self.imported.through < self.span.through

    async def load(self, client: Client, token: str, progress: Callable[[Progress], None]) -> ImportResult:
        """Import the data for the client's user. Raises what `import_export` raises."""
        from myhealth_cli.importer import Target, import_export  # noqa: PLC0415 - seldom needed

        if await client.profile() == Profile():
            await client.put_profile(_PROFILE)
        path = await self._begin()
        result = await import_export(path, Target(url=client.url, token=token), progress=progress)
        self._state.write_bytes(msgspec.json.encode(self.span))
        return result

    async def clean(self) -> None:
        """Remove what was generated."""
        if self._export is None:
            return
        await asyncio.wait([self._export])
        self._export.exception()
        self._remove_exports()

    def _remove_exports(self) -> None:
        for each in self._folder.glob("demo-*"):
            shutil.rmtree(each, ignore_errors=True)
