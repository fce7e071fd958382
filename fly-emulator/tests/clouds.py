"""A cloud in this process and a client that asks its APIs as flyctl does."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from fly_emulator.cloud.api import create_cloud_api
from fly_emulator.cloud.images import Entry
from fly_emulator.cloud.running import Cloud, CloudSettings
from fly_emulator.machine_config import Init, Port
from fly_emulator.machines.api import ApiSettings

from .fleets import PROGRAMS, QUICK, WEB

TOKEN = "token-of-the-test"
WEB_COMMAND = (sys.executable, "-E", "-s", str(PROGRAMS / "web.py"))
V1, V2 = "registry.fly.io/shop:v1", "registry.fly.io/shop:v2"


def machine(image: str = V1, **changes: Any) -> dict[str, Any]:
    """Return what flyctl sends to make a machine of the web program; the command is the image's."""
    ports = (Port(port=80, handlers=("http",)), Port(port=443, handlers=("http", "tls")))
    services = tuple(msgspec.structs.replace(each, ports=ports) for each in WEB.services)
    config = msgspec.structs.replace(WEB, image=image, init=Init(), services=services)
    return {"config": {**msgspec.to_builtins(config), **changes}}


class CloudClient:
    """Asks with the token."""

    def __init__(self, session: aiohttp.ClientSession, cloud: Cloud) -> None:
        self.session = session
        self.cloud = cloud

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Ask; return status and document."""
        async with self.session.request(method, path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, msgspec.json.decode(text) if text else None

    async def ok(self, method: str, path: str, body: object = None) -> Any:
        """Ask, and expect success."""
        status, document = await self.ask(method, path, body)
        assert status < 300, document
        return document

    async def graphql(self, query: str, **variables: object) -> dict[str, Any]:
        """Ask GraphQL, and expect no errors."""
        answer = await self.ok("POST", "/graphql", {"query": query, "variables": variables})
        assert "errors" not in answer, answer
        return answer["data"]

    async def refused(self, query: str, **variables: object) -> dict[str, Any]:
        """Ask GraphQL, and expect an error: the first."""
        answer = await self.ok("POST", "/graphql", {"query": query, "variables": variables})
        return answer["errors"][0]

    async def app(self, name: str = "shop") -> None:
        """Make an app."""
        await self.ok("POST", "/v1/apps?wait=true", {"name": name, "org_slug": "personal"})

    async def start(self, image: str = V1, *, app: str = "shop", **more: Any) -> str:
        """Make a machine and wait until it is started."""
        made = await self.ok("POST", f"/v1/apps/{app}/machines", {**machine(image), **more})
        await self.ok("GET", f"/v1/apps/{app}/machines/{made['id']}/wait?state=started")
        return made["id"]

    async def env(self, app: str = "shop") -> dict[str, str]:
        """Ask the app through its edge what it was given."""
        return await self.ok("GET", f"{self.cloud.app(app).url}/env")


@asynccontextmanager
async def clouded(directory: Path, settings: CloudSettings | None = None) -> AsyncGenerator[CloudClient]:
    """Open a cloud with the images v1 and v2 of the web program; all is ended at the end."""
    lines: list[str] = []
    cloud = Cloud(directory, settings or CloudSettings(machines=QUICK), lines.append)
    cloud.images.add(V1, Entry(command=WEB_COMMAND, env={"NUMBER": "1"}))
    cloud.images.add(V2, Entry(command=WEB_COMMAND, env={"NUMBER": "2"}))
    await cloud.open()
    runner = web.AppRunner(
        create_cloud_api(cloud, ApiSettings(token=TOKEN)), access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base, headers = f"http://127.0.0.1:{runner.addresses[0][1]}", {"Authorization": f"Bearer {TOKEN}"}
    try:
        async with aiohttp.ClientSession(base, headers=headers) as session:
            yield CloudClient(session, cloud)
    finally:
        await runner.cleanup()
        await cloud.close()
