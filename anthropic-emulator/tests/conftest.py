"""An emulator on a free port for every test, without delays, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import aiohttp
import pytest
from aiohttp import web

from anthropic_emulator.server import create_app
from anthropic_emulator.settings import Settings

from .client import Emulator


@pytest.fixture
def settings() -> Settings:
    return Settings(ttft_ms=0, delay_ms=0, jitter=0, max_body=1_000_000)


@pytest.fixture
async def emulator(settings: Settings) -> AsyncGenerator[Emulator]:
    runner = web.AppRunner(create_app(settings), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Emulator(url, session)
    await runner.cleanup()
