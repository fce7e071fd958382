"""`myhealth import`: stream an Apple Health export to `PUT /v1/health/samples`.

Parsing runs in a thread, a few uploads run beside it. Batches are idempotent by sample id, so a batch whose
answer was lost is simply sent again, and so is a whole import.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import aiohttp
import msgspec

from myhealth_cli.apple_health import Export, Report
from myhealth_cli.errors import ExportDamagedError, MyHealthError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from myhealth_cli.apple_health.samples import Sample

BATCH: Final = 2000  # the most the server takes at once
_PASSING: Final = frozenset({429, 502, 503, 504})
_INVALID: Final = frozenset({400, 422})
_INDEX: Final = re.compile(r"\bsamples\[(\d+)\]\.?(.*)")
_TOLERATED: Final = 100  # refused samples, before we ask whether it is us who are wrong
_HINTS: Final = {
    401: "The token is missing, expired or of another environment: make one with `myhealth token`.",
    403: "This token may not write health data.",
    404: "Is --url the address of the agent backend?",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to send to, and how patiently.

    `retry_for_s` bounds the retries of one batch (`first_answer_s` while the server has answered nothing yet,
    so that a wrong address is noticed soon), `first_pause_s` is the first pause between them (it
    doubles, with jitter, unless the server names one in Retry-After).
    """

    url: str
    token: str
    renew: Callable[[], Awaitable[str]] | None = None
    """Gives another token when this one is refused: an import can last longer than a token."""
    concurrency: int = 3
    batch: int = BATCH
    retry_for_s: float = 120.0
    first_answer_s: float = 10.0
    first_pause_s: float = 0.25
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Progress:
    """How far an import is: bytes of the file read, of how many, and samples the server has answered for."""

    read: int
    total: int
    sent: int


@dataclass
class ImportResult:
    """What an import did.

    `samples` counts what was sent per metric or kind; of these the server `stored` some and had others
    (`unchanged`) already, or in another version (`replaced`). `repeated` counts samples the file itself
    repeats within a batch, `refused` those the server would not have, by field and reason.
    """

    file: str
    report: Report
    sent: int = 0
    stored: int = 0
    unchanged: int = 0
    replaced: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    samples: Counter[str] = field(default_factory=Counter[str])

    @property
    def unknown_types(self) -> Counter[str]:
        """How often a type was met that is none of our metrics."""
        return self.report.unknown_types

    @property
    def skipped(self) -> Counter[str]:
        """How many records of a type could not be read, by type and reason."""
        return self.report.skipped


class DamagedImportError(MyHealthError):
    """The export is damaged; everything before the damage was sent. `result` says what, `cause` where."""

    def __init__(self, cause: ExportDamagedError, result: ImportResult) -> None:
        super().__init__(f"{cause} ({result.sent:,} samples before it are imported)", hint=cause.hint)
        self.cause = cause
        self.result = result


class ImportRefusedError(MyHealthError):
    """The server refused a batch: its problem document's title, detail and fields (`field: reason`)."""

    def __init__(self, status: int, problem: Problem) -> None:
        fields = "; ".join(f"{error.field}: {error.reason}" for error in problem.errors[:5])
        words = " - ".join(part for part in (problem.title, problem.detail, fields) if part)
        super().__init__(f"the server refused the samples ({status}): {words}", hint=_HINTS.get(status, ""))
        self.status = status
        self.code = problem.code
        self.errors = problem.errors


class UnreachableError(MyHealthError):
    """The server did not take a batch within `retry_for_s`; the import can be repeated safely."""


class FieldError(msgspec.Struct, frozen=True):
    """One entry of a problem document's `errors`."""

    field: str = ""
    reason: str = ""


class Problem(msgspec.Struct, frozen=True):
    """An RFC 9457 problem document, as far as we print it."""

    title: str = ""
    detail: str = ""
    code: str = ""
    errors: tuple[FieldError, ...] = ()


class _Stored(msgspec.Struct, frozen=True):
    stored: int
    unchanged: int
    replaced: int = 0


class _Batch(msgspec.Struct, frozen=True):
    samples: list[Sample]


_Damage: TypeAlias = ExportDamagedError | None


async def import_export(
    path: Path, target: Target, *, progress: Callable[[Progress], None] = lambda _: None
) -> ImportResult:
    """Send all of an export.zip or export.xml to the server.

    `progress` is called after every batch, on the event loop. Raises ExportUnreadableError before anything
    is sent; DamagedImportError after everything readable is; ImportRefusedError and UnreachableError.
    """
    with await asyncio.to_thread(Export, path) as export:
        result = ImportResult(export.name, export.report)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=target.timeout_s)
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            upload = _Upload(target, session, result, lambda sent: _tell(progress, export, sent))
            damage = await _run(export, upload)
    if damage is not None:
        raise DamagedImportError(damage, result) from damage
    return result


def _tell(progress: Callable[[Progress], None], export: Export, sent: int) -> None:
    progress(Progress(export.position, export.total, sent))


async def _run(export: Export, upload: _Upload) -> _Damage:
    """Read batches into a short queue that the senders empty; the first error ends them all."""
    queue: asyncio.Queue[list[Sample] | None] = asyncio.Queue(1)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(upload.target.concurrency):
                group.create_task(_send_all(queue, upload))
            return await _read_all(export.samples(), queue, upload.target)
    except BaseExceptionGroup as errors:
        # Not `except*`: before Python 3.11.4 what is raised in it becomes a group again (cpython#103590).
        ours, others = errors.split(MyHealthError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from None


async def _read_all(
    samples: Iterator[Sample], queue: asyncio.Queue[list[Sample] | None], target: Target
) -> _Damage:
    while True:
        batch, damage, at_end = await asyncio.to_thread(_take, samples, target.batch)
        if batch:
            await queue.put(batch)
        if at_end:
            for _ in range(target.concurrency):
                await queue.put(None)
            return damage


def _take(samples: Iterator[Sample], limit: int) -> tuple[list[Sample], _Damage, bool]:
    """Give up to `limit` samples, what broke the reading, and whether that was all."""
    batch: list[Sample] = []
    try:
        for sample in islice(samples, limit):
            batch.append(sample)  # noqa: PERF402 - what came before the damage must stay in the list
    except ExportDamagedError as damage:
        return batch, damage, True
    return batch, None, len(batch) < limit


async def _send_all(queue: asyncio.Queue[list[Sample] | None], upload: _Upload) -> None:
    while (batch := await queue.get()) is not None:
        await upload.send(batch)


def _first(errors: BaseExceptionGroup[MyHealthError]) -> MyHealthError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Upload:
    """Sends batches, counts what came of them."""

    def __init__(
        self,
        target: Target,
        session: aiohttp.ClientSession,
        result: ImportResult,
        told: Callable[[int], None],
    ) -> None:
        self.target = target
        self._session = session
        self._result = result
        self._told = told
        self._answered = False
        self._token = target.token
        self._url = f"{target.url.rstrip('/')}/v1/health/samples"

    async def send(self, batch: list[Sample]) -> None:
        """Send one batch until it is answered; a repeated id counts once (the last one holds)."""
        unique: dict[UUID, Sample] = {sample.id: sample for sample in batch}
        self._result.repeated += len(batch) - len(unique)
        await self._put(list(unique.values()))

    async def _put(self, batch: list[Sample]) -> None:
        renewed = False
        while batch:
            status, body = await self._until_answered(msgspec.json.encode(_Batch(batch)))
            if status == 401 and self.target.renew is not None and not renewed:
                self._token, renewed = await self.target.renew(), True
                continue
            if status == 200:
                return self._count(batch, body)
            if status == 413 and len(batch) > 1:  # the server's limit in bytes is its own affair
                half = len(batch) // 2
                await self._put(batch[:half])
                batch = batch[half:]
            elif status in _INVALID:
                batch = self._without_refused(batch, status, _problem(body))
            else:
                raise ImportRefusedError(status, _problem(body))
        return None

    def _without_refused(self, batch: list[Sample], status: int, problem: Problem) -> list[Sample]:
        """Drop what the problem document names, so that one odd sample does not hold up ten years."""
        refused = {
            int(match[1]): f"{batch[int(match[1])].label}.{match[2]}: {error.reason}"
            for error in problem.errors
            if (match := _INDEX.search(error.field)) and int(match[1]) < len(batch)
        }
        counts = self._result.refused
        counts.update(refused.values())
        if not refused or counts.total() > max(_TOLERATED, self._result.sent // 10):
            raise ImportRefusedError(status, problem)
        return [sample for index, sample in enumerate(batch) if index not in refused]

    def _count(self, batch: list[Sample], body: bytes) -> None:
        try:
            answer = msgspec.json.decode(body, type=_Stored)
        except msgspec.DecodeError as error:
            raise ImportRefusedError(200, Problem("the answer is not the backend's")) from error
        result = self._result
        result.sent += len(batch)
        result.stored += answer.stored
        result.unchanged += answer.unchanged
        result.replaced += answer.replaced
        result.samples.update(sample.label for sample in batch)
        self._told(result.sent)

    async def _until_answered(self, body: bytes) -> tuple[int, bytes]:
        """Give status and body of the first answer that is not "later"; connection loss counts as later."""
        clock = asyncio.get_running_loop().time
        began, pause = clock(), self.target.first_pause_s
        while True:
            try:
                headers = {"Authorization": f"Bearer {self._token}"}
                async with self._session.put(self._url, data=body, headers=headers) as response:
                    self._answered = True
                    if response.status not in _PASSING:
                        return response.status, await response.read()
                    reason = f"it answers {response.status}"
                    wait = _retry_after(response)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
                reason, wait = str(error) or type(error).__name__, None
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
                raise UnreachableError(f"{self.target.url!r} is not an http address") from error
            wait = random.uniform(pause / 2, pause) if wait is None else wait  # noqa: S311 - jitter
            patience = self.target.retry_for_s if self._answered else self.target.first_answer_s
            if clock() + wait > began + patience:
                raise UnreachableError(
                    f"{self.target.url} did not take the samples: {reason}",
                    hint="Is the backend running? The import can be repeated, nothing is stored twice.",
                )
            await asyncio.sleep(wait)
            pause = min(pause * 2, 10.0)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    with suppress(ValueError):
        return max(0.0, float(response.headers.get("Retry-After", "")))
    return None


def _problem(body: bytes) -> Problem:
    try:
        return msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        return Problem(detail=body[:200].decode("utf-8", "replace"))
