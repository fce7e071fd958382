from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from myhealth_cli.apple_health import Export
from myhealth_cli.apple_health.generate import generate_export
from myhealth_cli.errors import ExportUnreadableError
from myhealth_cli.importer import (
    DamagedImportError,
    ImportRefusedError,
    Progress,
    Target,
    UnreachableError,
    import_export,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

TOKEN = "a-token"


@dataclass
class Server:
    """The contract of `PUT /v1/health/samples`, kept by a real server; `faults` are answered first."""

    url: str = ""
    stored: dict[str, Any] = field(default_factory=dict[str, Any])
    sizes: list[int] = field(default_factory=list[int])
    faults: deque[Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=deque[Any])
    limit: int = 8 << 20
    busiest: int = 0
    _busy: int = 0

    async def put(self, request: web.Request) -> web.StreamResponse:
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            return await self._answer(request)
        finally:
            self._busy -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.faults:
            return await self.faults.popleft()(request)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(401, "Unauthorized")
        if len(body) > self.limit:
            return problem(413, "Too large")
        samples: list[dict[str, Any]] = json.loads(body)["samples"]
        assert 0 < len(samples) <= 2000
        assert len({sample["id"] for sample in samples}) == len(samples)
        self.sizes.append(len(samples))
        new = {sample["id"]: sample for sample in samples if self.stored.get(sample["id"]) != sample}
        self.stored |= new
        counts = {"received": len(samples), "stored": len(new), "unchanged": len(samples) - len(new)}
        return web.json_response(counts)


def problem(status: int, title: str, **extra: Any) -> web.Response:
    document = {"type": "about:blank", "title": title, "status": status} | extra
    return web.json_response(document, status=status, content_type="application/problem+json")


def later(status: int, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers)

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@asynccontextmanager
async def serving() -> AsyncGenerator[Server]:
    server = Server()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_put("/v1/health/samples", server.put)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()


def target(server: Server, **changes: Any) -> Target:
    settings: dict[str, Any] = {"token": TOKEN, "first_pause_s": 0.001, "retry_for_s": 5.0, "batch": 500}
    return Target(url=server.url, **(settings | changes))


@pytest.fixture
def truncated(export: Path, tmp_path: Path) -> Path:
    path = tmp_path / "export.zip"
    path.write_bytes(export.read_bytes()[: export.stat().st_size * 2 // 3])
    return path


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "export.zip"
    return generate_export(path, seed=5, days=4, end_date=date(2025, 4, 20)).path


def expected(path: Path) -> dict[str, int]:
    with Export(path) as opened:
        for _ in opened.samples():
            pass
        return dict(opened.report.samples)


async def test_everything_arrives_once_and_again_changes_nothing(export: Path) -> None:
    seen: list[Progress] = []
    async with serving() as server:
        first = await import_export(export, target(server), progress=seen.append)
        again = await import_export(export, target(server))
        assert server.busiest <= 3
    assert dict(first.samples) == expected(export)
    assert first.sent == first.stored == len(server.stored)
    assert (again.sent, again.stored, again.unchanged) == (first.sent, 0, first.sent)
    assert first.unknown_types["HKCategoryTypeIdentifierAppleStandHour"] > 0
    assert [step.sent for step in seen] == sorted(step.sent for step in seen)
    assert seen[-1].read == seen[-1].total > 0
    assert seen[-1].sent == first.sent


async def test_samples_have_the_wire_format(export: Path) -> None:
    async with serving() as server:
        await import_export(export, target(server))
    kinds = {sample["kind"]: sample for sample in server.stored.values()}
    assert set(kinds["quantity"]) == {
        "kind", "id", "metric", "start", "end", "value", "unit", "source", "device",
    }  # fmt: skip
    assert set(kinds["sleep"]) == {"kind", "id", "stage", "start", "end", "source", "device"}
    assert set(kinds["workout"]) == {
        "kind", "id", "activity", "start", "end", "duration_s", "energy_kcal", "distance_m", "source",
        "device", "note",
    }  # fmt: skip
    assert set(kinds["activity_summary"]) == {
        "kind", "id", "date", "active_energy_kcal", "exercise_minutes", "stand_hours",
        "active_energy_goal_kcal",
    }  # fmt: skip


async def test_lost_connections_and_busy_answers_are_retried(export: Path) -> None:
    async with serving() as server:
        server.faults.extend(
            [cut, later(503), later(429, **{"Retry-After": "0"}), cut, later(502), later(503)]
        )
        result = await import_export(export, target(server))
        assert not server.faults
    assert dict(result.samples) == expected(export)
    assert result.sent == len(server.stored)


async def test_a_server_that_never_answers_is_given_up(export: Path) -> None:
    async with serving() as server:
        server.faults.extend([later(503)] * 1000)
        with pytest.raises(UnreachableError, match="503") as caught:
            await import_export(export, target(server, retry_for_s=0.05))
    assert "repeated" in caught.value.hint


async def test_a_wrong_address_is_noticed_soon(export: Path) -> None:
    async with serving() as server:
        pass
    with pytest.raises(UnreachableError, match="did not take"):
        await import_export(export, target(server, first_answer_s=0.05))
    for url in ("localhost:3001", "nonsense", "ftp://localhost"):
        with pytest.raises(UnreachableError, match="is not an http address"):
            await import_export(export, Target(url=url, token=TOKEN))


def refusing(*errors: dict[str, str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return problem(422, "Invalid samples", detail="see errors", errors=errors)

    return answer


async def test_samples_the_server_refuses_are_left_out_and_counted(export: Path) -> None:
    async with serving() as server:
        server.faults.append(
            refusing(
                {"field": "$.samples[3].value", "reason": "is too large"},
                {"field": "$.samples[7].value", "reason": "is too large"},
            )
        )
        result = await import_export(export, target(server))
    assert result.refused.total() == 2
    assert all(reason.endswith(".value: is too large") for reason in result.refused)
    assert result.sent == len(server.stored) == sum(expected(export).values()) - 2


@pytest.mark.parametrize("field", ["samples", "$.samples[100000].value", "body"])
async def test_a_refusal_that_names_no_sample_ends_the_import(export: Path, field: str) -> None:
    async with serving() as server:
        server.faults.append(refusing({"field": field, "reason": "expected a number"}))
        with pytest.raises(ImportRefusedError, match="expected a number") as caught:
            await import_export(export, target(server))
    assert caught.value.status == 422
    assert caught.value.errors[0].field == field


async def test_a_server_that_refuses_everything_ends_the_import(export: Path) -> None:
    async with serving() as server:
        server.faults.extend([refusing({"field": "samples[0].unit", "reason": "unknown"})] * 10_000)
        with pytest.raises(ImportRefusedError, match=r"samples\[0\]\.unit: unknown"):
            await import_export(export, target(server))
    assert not server.stored


async def test_a_wrong_token_hints_at_the_token(export: Path) -> None:
    async with serving() as server:
        with pytest.raises(ImportRefusedError, match="401") as caught:
            await import_export(export, target(server, token="wrong"))
    assert "token" in caught.value.hint
    assert not server.stored


async def test_an_answer_of_something_else_is_named(export: Path) -> None:
    async def page(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>It works!</html>")

    async with serving() as server:
        server.faults.append(page)
        with pytest.raises(ImportRefusedError, match="not the backend's"):
            await import_export(export, target(server))


async def test_batches_too_large_for_the_server_are_halved(export: Path) -> None:
    async with serving() as server:
        server.limit = 40_000
        result = await import_export(export, target(server))
    assert max(server.sizes) <= 250
    assert result.sent == len(server.stored)


async def test_a_truncated_export_is_sent_up_to_the_damage(truncated: Path) -> None:
    async with serving() as server:
        with pytest.raises(DamagedImportError, match=r"byte [\d,]+, at <\w+> no\. \d+") as caught:
            await import_export(truncated, target(server))
    assert caught.value.result.sent == len(server.stored) > 500
    assert caught.value.cause.offset > 0


async def test_what_is_no_export_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    async with serving() as server:
        with pytest.raises(ExportUnreadableError):
            await import_export(path, target(server))
    assert not server.sizes


async def test_cancelling_an_import_ends_it(export: Path) -> None:
    arrived, released = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        arrived.set()
        await released.wait()
        return web.Response()

    async with serving() as server:
        server.faults.extend([hang] * 8)
        running = asyncio.create_task(import_export(export, target(server)))
        await arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        released.set()
    assert not server.stored
