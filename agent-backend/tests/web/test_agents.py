from __future__ import annotations

from pathlib import Path

import aiohttp

from agent_backend.app import create_app

from .serving import headers_for, serving, settings_for


async def test_agents_are_listed_without_their_prompts(tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tmp_path, database_url)
    async with (
        serving(create_app(settings), settings) as url,
        aiohttp.ClientSession(url, headers=headers_for(settings)) as http,
        http.get("/v1/agents") as response,
    ):
        assert response.status == 200
        listed = await response.json()
    agent = {
        "name": "coach",
        "description": "Talks about health data",
        "model": "claude-sonnet-5-5",
        "device_tools": False,
    }
    assert listed == {"agents": [agent]}
