"""Health checks against real servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from fly_emulator.machine_config import Check, Restart, Service

from .fleets import QUICK, opened, shell, until, web

FAST = Check(path="/health", interval="20ms", timeout="2s", grace_period="1ms")


async def test_the_first_pass_is_found_at_once_whatever_the_interval(tmp_path: Path) -> None:
    check = Check(path="/health", interval="1m", grace_period="1m")
    service = Service(internal_port=8080, checks=(check,))
    async with opened(tmp_path) as fleet:
        machine = fleet.create(web(services=(service,)))
        await machine.start()
        assert await machine.wait_healthy(8080, 10.0)


async def test_a_check_that_fails_later_is_critical_and_ends_routing(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    lines: list[str] = []
    service = Service(internal_port=8080, checks=(FAST,))
    async with opened(tmp_path, lines=lines) as fleet:
        machine = fleet.create(web({"HEALTH_FLAG": str(flag)}, services=(service,)))
        await machine.start()
        assert await machine.wait_healthy(8080, 10.0)
        flag.unlink()
        await until(fleet, lambda: not machine.healthy(8080))
        (result,) = machine.check_results()
        assert result.status == "critical"
        assert result.output == "503 Service Unavailable: not yet"
        assert machine.state == "started"
        flag.touch()
        await until(fleet, lambda: machine.healthy(8080))
    assert any("health[" in line and "is now critical" in line for line in lines)


async def test_failures_in_the_grace_period_do_not_count(tmp_path: Path) -> None:
    check = msgspec.structs.replace(FAST, grace_period="1m")
    service = Service(internal_port=8080, checks=(check,))
    async with opened(tmp_path) as fleet:
        machine = fleet.create(web({"HEALTH_FLAG": str(tmp_path / "never")}, services=(service,)))
        await machine.start()
        assert not await machine.wait_healthy(8080, 0.3)
        assert machine.check_results()[0].status == "warning"


async def test_machine_checks_inform_and_do_not_gate(tmp_path: Path) -> None:
    config = web(
        services=(Service(internal_port=8080),),
        checks={"deep": msgspec.structs.replace(FAST, port=8080, path="/404")},
    )
    async with opened(tmp_path) as fleet:
        machine = fleet.create(config)
        await machine.start()
        assert await machine.wait_healthy(8080, 10.0)
        await until(fleet, lambda: machine.check_results()[0].status == "critical")
        assert machine.check_results()[0].name == "deep"
        assert machine.healthy(8080)


async def test_without_checks_a_port_that_accepts_is_healthy(tmp_path: Path) -> None:
    silent = shell("sleep 600", services=(Service(internal_port=8080),))
    async with opened(tmp_path) as fleet:
        machine = fleet.create(silent)
        await machine.start()
        assert not await machine.wait_healthy(8080, 0.1)
        assert machine.check_results() == []
    async with opened(tmp_path / "off", msgspec.structs.replace(QUICK, probe_ports=False)) as fleet:
        machine = fleet.create(silent)
        await machine.start()
        assert machine.healthy(8080)


async def test_a_silent_server_times_out(tmp_path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        writer.close()

    check = msgspec.structs.replace(FAST, timeout="50ms")
    service = Service(internal_port=8080, checks=(check,))
    async with opened(tmp_path) as fleet:
        machine = fleet.create(shell("sleep 600", services=(service,), restart=Restart(policy="no")))
        await machine.start()
        server = await asyncio.start_server(hang, *machine.address(8080))
        await until(fleet, lambda: machine.check_results()[0].status == "critical")
        server.close()
