from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from agent_backend.errors import OperatorError
from agent_backend.listening import listen
from agent_backend.telemetry import metrics
from agent_backend.web import ops

from ..ports import free_port


async def test_metrics_are_served_and_nothing_else() -> None:
    metrics.turns["completed"] += 1
    port = free_port()
    server = await ops.start("127.0.0.1", port)
    async with server, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/metrics") as response:
            assert response.content_type == "text/plain"
            assert 'turns_total{outcome="completed"}' in await response.text()
        async with http.get("/") as response:
            assert response.status == 404
        async with http.post("/metrics") as response:
            assert response.status == 405


async def test_garbage_on_the_metrics_port_harms_nobody() -> None:
    port = free_port()
    async with await ops.start("127.0.0.1", port):
        for sent in (b"", b"\r\n\r\n", b"\x00" * 50_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            writer.write_eof()
            await reader.read()
            writer.close()


def test_a_port_in_use_is_named_with_the_way_to_choose_another() -> None:
    with listen("127.0.0.1", 0, "PORT") as taken, pytest.raises(OperatorError) as refused:
        listen("127.0.0.1", taken.getsockname()[1], "PORT")
    port = taken.getsockname()[1] if taken.fileno() != -1 else None
    assert port is None
    assert "is in use" in refused.value.problem
    assert "PORT=" in refused.value.hint


def test_all_addresses_means_ipv4_too() -> None:
    with listen("::", 0, "PORT") as listening:
        socket.create_connection(("127.0.0.1", listening.getsockname()[1])).close()


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(OperatorError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0, "PORT")
