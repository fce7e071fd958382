"""The Machines API over real sockets, as a client that knows Fly's would use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from fly_emulator.machines.api import ApiSettings, MachineSockets, create_api
from fly_emulator.machines.fleet import Fleet, open_fleet
from fly_emulator.machines.settings import MachineSettings

from .fleets import QUICK, WEB, eventually, opened, shell, until
from .fleets import web as web_config

TOKEN = {"Authorization": "Bearer test"}


class Client:
    """Asks the API of one app."""

    def __init__(self, session: aiohttp.ClientSession, fleet: Fleet) -> None:
        self.session = session
        self.fleet = fleet

    async def ask(
        self,
        method: str,
        path: str = "",
        body: object = None,
        *,
        nonce: str | None = None,
        headers: dict[str, str] = TOKEN,
    ) -> tuple[int, Any]:
        """Ask below `/v1/apps/app/machines`, or at an absolute path."""
        url = path if path.startswith("/v1") else f"/v1/apps/app/machines{path}"
        more = {} if nonce is None else {"fly-machine-lease-nonce": nonce}
        async with self.session.request(method, url, json=body, headers={**headers, **more}) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def ok(self, method: str, path: str = "", body: object = None) -> Any:
        """Ask, and expect success."""
        status, document = await self.ask(method, path, body)
        assert status < 300, document
        return document

    async def create(self, config: object = None, **more: Any) -> str:
        """Create a machine and wait until it is started."""
        document = {"config": msgspec.to_builtins(WEB if config is None else config), **more}
        machine = (await self.ok("POST", "", document))["id"]
        if not more.get("skip_launch"):
            await self.ok("GET", f"/{machine}/wait?state=started")
        return machine


@asynccontextmanager
async def serving(
    directory: Path,
    settings: MachineSettings = QUICK,
    api: ApiSettings | None = None,
) -> AsyncGenerator[Client]:
    async with opened(directory, settings) as fleet:
        fleets: MutableMapping[str, Fleet] = {"app": fleet}
        made: list[Fleet] = []

        async def make(name: str) -> Fleet:
            made.append(await open_fleet(name, primary_region="fra", directory=directory / name))
            return made[-1]

        sockets = MachineSockets(fleet, create_api(fleets, trusted=True))
        await sockets.start()
        runner = web.AppRunner(create_api(fleets, api, make=make), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
                yield Client(session, fleet)
        finally:
            await sockets.close()
            await runner.cleanup()
            for other in made:
                await other.close()


async def test_a_token_is_required(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        status, document = await client.ask("GET", headers={})
        assert status == 401
        assert "error" in document
        assert (await client.ask("GET"))[0] == 200
    async with serving(tmp_path, api=ApiSettings(token="right")) as client:
        assert (await client.ask("GET"))[0] == 401
        assert (await client.ask("GET", headers={"Authorization": "Bearer right"}))[0] == 200


async def test_apps(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        assert [app["name"] for app in (await client.ok("GET", "/v1/apps"))["apps"]] == ["app"]
        assert (await client.ok("GET", "/v1/apps/app"))["organization"]["slug"] == "personal"
        assert (await client.ask("GET", "/v1/apps/other"))[0] == 404
        assert (await client.ask("POST", "/v1/apps", {"app_name": "other"}))[0] == 201
        assert (await client.ask("POST", "/v1/apps", {"app_name": "other"}))[0] == 422
        assert (await client.ask("POST", "/v1/apps", {}))[0] == 400
        assert await client.ok("GET", "/v1/apps/other/machines") == []
        await client.create(shell("sleep 60"))
        assert (await client.ask("DELETE", "/v1/apps/app"))[0] == 412
        assert (await client.ask("DELETE", "/v1/apps/app?force=true"))[0] == 202
        assert await client.ok("GET") == []


async def test_the_life_of_a_machine(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        created = await client.ok(
            "POST", "", {"name": "one", "region": "ams", "config": msgspec.to_builtins(WEB)}
        )
        assert created["state"] == "created"
        assert created["name"] == "one"
        assert created["region"] == "ams"
        assert created["image_ref"] == {
            "registry": "registry.fly.io",
            "repository": "app",
            "tag": "v1",
        }
        assert created["events"][0]["type"] == "launch"
        assert created["host_status"] == "ok"
        at, version = f"/{created['id']}", created["instance_id"]
        await client.ok("GET", f"{at}/wait?state=started&timeout=20")
        await until(client.fleet, lambda: client.fleet.find(created["id"]).healthy(8080))
        shown = await client.ok("GET", at)
        assert shown["checks"][0]["name"] == "servicecheck-00-http-8080"
        assert shown["checks"][0]["status"] == "passing"
        assert await client.ok("POST", f"{at}/suspend") == {"ok": True}
        await client.ok("GET", f"{at}/wait?state=suspended")
        answer = await client.ok("POST", f"{at}/start")
        assert answer["previous_state"] == "suspended"
        assert await client.ok("POST", f"{at}/stop", {"signal": "SIGTERM", "timeout": "5s"}) == {"ok": True}
        await client.ok("GET", f"{at}/wait?state=stopped&instance_id={version}")
        exits = [event for event in await client.ok("GET", f"{at}/events") if event["type"] == "exit"]
        assert exits[0]["request"]["exit_event"]["requested_stop"] is True
        assert (await client.ask("POST", f"{at}/suspend"))[0] == 412
        assert (await client.ask("POST", f"{at}/restart"))[0] == 412
        await client.ok("DELETE", at)
        assert await client.ok("GET") == []
        assert (await client.ok("GET", "?include_deleted=true"))[0]["state"] == "destroyed"
        assert (await client.ask("POST", f"{at}/start"))[0] == 412
        assert (await client.ask("GET", "/00000000000000"))[0] == 404


async def test_lists_are_filtered(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        quiet = await client.create(skip_launch=True, region="ams")
        await client.create(shell("sleep 60", metadata={"role": "worker"}))
        assert [found["id"] for found in await client.ok("GET", "?region=ams")] == [quiet]
        assert [found["id"] for found in await client.ok("GET", "?state=created,stopped")] == [quiet]
        assert len(await client.ok("GET", "?metadata.role=worker")) == 1
        assert "config" not in (await client.ok("GET", "?summary=true"))[0]


async def test_bad_requests_are_told_what_is_wrong(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        for body in ({}, {"config": {}}, {"config": {"image": "x", "services": [{"protocol": "tcp"}]}}, []):
            status, document = await client.ask("POST", "", body)
            assert status == 400, body
            assert document["error"].startswith("invalid_argument: ")
        machine = await client.create(skip_launch=True)
        assert (await client.ask("POST", "", {"name": "x", "config": {"image": "x"}, "skip_launch": True}))[
            0
        ] == 200
        assert (await client.ask("POST", "", {"name": "x", "config": {"image": "x"}}))[0] == 409
        for query in ("state=nonsense", "timeout=61", "timeout=x", "timeout=0"):
            assert (await client.ask("GET", f"/{machine}/wait?{query}"))[0] == 400, query


async def test_wait_answers_408_with_flys_words(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(skip_launch=True)
        await client.ok("GET", f"/{machine}/wait?state=stopped")
        status, document = await client.ask("GET", f"/{machine}/wait?state=started&timeout=0.05")
        assert status == 408
        assert document["error"] == (
            "deadline_exceeded: machine failed to reach desired state, started, currently stopped"
        )


async def test_autostop_is_a_boolean_or_suspend(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        for given, shown in (
            (True, True),
            ("stop", True),
            ("off", False),
            (False, False),
            ("suspend", "suspend"),
        ):
            config = {"image": "x", "services": [{"internal_port": 80, "protocol": "tcp", "autostop": given}]}
            machine = await client.ok("POST", "", {"config": config, "skip_launch": True})
            assert machine["config"]["services"][0]["autostop"] == shown
            assert isinstance(machine["config"]["services"][0]["autostop"], type(shown))


async def test_what_the_api_returns_can_be_sent_back(tmp_path: Path) -> None:
    config = {
        "image": "registry.fly.io/app@sha256:00",
        "size": "shared-cpu-2x",
        "env": {"A": "1"},
        "guest": None,
        "stop_config": {"timeout": 10_000_000_000, "signal": "SIGTERM"},
        "restart": {"policy": "on-fail", "max_retries": 3},
        "services": [
            {
                "internal_port": 8080,
                "protocol": "tcp",
                "autostop": "suspend",
                "concurrency": {"type": "requests", "soft_limit": 5, "hard_limit": 0},
                "checks": [
                    {"type": "http", "interval": 15_000_000_000, "headers": [{"name": "A", "values": ["b"]}]}
                ],
            }
        ],
        "unknown_field": 1,
    }
    async with serving(tmp_path) as client:
        first = await client.ok("POST", "", {"config": config, "skip_launch": True})
        second = await client.ok("POST", "", {"config": first["config"], "skip_launch": True})
        assert second["config"] == first["config"]
        assert first["config"]["guest"] == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 512}
        assert first["config"]["restart"] == {"policy": "on-failure", "max_retries": 3}
        assert first["config"]["services"][0]["checks"][0]["headers"] == [{"name": "A", "values": ["b"]}]
        assert "hard_limit" not in first["config"]["services"][0]["concurrency"]


async def test_update_is_accepted_at_once_and_makes_a_version(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, replace_seconds=0.5)
    async with serving(tmp_path, settings) as client:
        machine = await client.create()
        at, old = f"/{machine}", (await client.ok("GET", f"/{machine}"))["instance_id"]
        config = msgspec.to_builtins(web_config({"RELEASE": "2"}))
        status, _ = await client.ask("POST", at, {"config": config, "current_version": "other"})
        assert status == 409
        updated = await client.ok("POST", at, {"config": config, "current_version": old})
        assert updated["state"] == "replacing"
        assert updated["instance_id"] != old
        status, document = await client.ask("POST", f"{at}/start")
        assert status == 412
        assert document["error"] == "failed_precondition: machine getting replaced, refusing to start"
        await client.ok("GET", f"{at}/wait?state=started&instance_id={updated['instance_id']}")
        assert (await client.ask("GET", f"{at}/wait?state=started&instance_id={old}"))[0] == 409
        assert (await client.ok("GET", f"{at}?version={old}"))["state"] == "replaced"
        versions = await client.ok("GET", f"{at}/versions")
        assert [version["version"] for version in versions] == [updated["instance_id"], old]
        assert versions[0]["user_config"]["env"] == {"RELEASE": "2"}


async def test_leases_keep_others_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(skip_launch=True)
        at = f"/{machine}"
        assert (await client.ask("GET", f"{at}/lease"))[0] == 404
        status, held = await client.ask("POST", f"{at}/lease?ttl=60")
        assert status == 201
        nonce = held["data"]["nonce"]
        assert (await client.ok("GET", at))["nonce"] == nonce
        status, refused = await client.ask("POST", f"{at}/lease?ttl=60")
        assert status == 409
        assert f"machine ID {machine} lease currently held by" in refused["message"]
        for path in ("/start", "/stop", "/suspend", "/restart", "/cordon", ""):
            assert (await client.ask("POST", at + path, {}))[0] == 409, path
        assert (await client.ask("DELETE", at))[0] == 409
        assert (await client.ask("POST", f"{at}/start", nonce="wrong"))[0] == 409
        status, refreshed = await client.ask("POST", f"{at}/lease?ttl=120", nonce=nonce)
        assert status == 201
        assert refreshed["data"]["nonce"] == nonce
        assert refreshed["data"]["expires_at"] > held["data"]["expires_at"]
        assert (await client.ask("POST", f"{at}/cordon", nonce=nonce))[0] == 200
        assert (await client.ask("DELETE", f"{at}/lease"))[0] == 400
        assert (await client.ask("DELETE", f"{at}/lease", nonce=nonce))[0] == 200
        assert (await client.ask("POST", f"{at}/uncordon"))[0] == 200


async def test_a_lease_ends_by_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(skip_launch=True)
        await client.ok("POST", f"/{machine}/lease?ttl=0.01")
        await asyncio.sleep(0.02)
        assert (await client.ask("POST", f"/{machine}/cordon"))[0] == 200


async def test_a_machine_can_be_born_leased_and_cordoned(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        body = {
            "config": {"image": "x"},
            "skip_launch": True,
            "lease_ttl": 60,
            "skip_service_registration": True,
        }
        machine = await client.ok("POST", "", body)
        assert machine["nonce"]
        assert client.fleet.find(machine["id"]).cordoned
        status, _ = await client.ask("POST", f"/{machine['id']}/uncordon", nonce=machine["nonce"])
        assert status == 200
        assert not client.fleet.find(machine["id"]).cordoned


async def test_metadata_keeps_the_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(skip_launch=True)
        at = f"/{machine}"
        version = (await client.ok("GET", at))["instance_id"]
        assert (await client.ask("POST", f"{at}/metadata/role", {"value": "web"}))[0] == 204
        assert await client.ok("GET", f"{at}/metadata") == {"fly_process_group": "app", "role": "web"}
        assert (await client.ask("DELETE", f"{at}/metadata/role"))[0] == 204
        assert "role" not in await client.ok("GET", f"{at}/metadata")
        assert (await client.ok("GET", at))["instance_id"] == version


async def test_exec_runs_in_the_machines_environment(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(web_config({"NAME": "value"}))
        at = f"/{machine}"
        done = await client.ok(
            "POST",
            f"{at}/exec",
            {"cmd": "sh -c 'echo $NAME $FLY_MACHINE_ID; cat; echo bad >&2; exit 3'", "stdin": "in"},
        )
        assert done["exit_code"] == 3
        assert done["stdout"] == f"value {machine}\nin"
        assert done["stderr"] == "bad\n"
        status, _ = await client.ask("POST", f"{at}/exec", {"cmd": "sleep 60", "timeout": 0.05})
        assert status == 408
        assert (await client.ask("POST", f"{at}/exec", {}))[0] == 400
        await client.fleet.stop(machine)
        assert (await client.ask("POST", f"{at}/exec", {"cmd": "true"}))[0] == 412


async def test_signals_are_sent_by_name_and_number(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create(shell("trap 'exit 5' USR1; while :; do sleep 0.01; done"))
        assert (await client.ask("POST", f"/{machine}/signal", {"signal": "SIGNONSENSE"}))[0] == 400
        found = client.fleet.find(machine)
        await client.ok("POST", f"/{machine}/signal", {"signal": "SIGKILL"})
        await until(client.fleet, lambda: found.state == "stopped")
        await client.ok("POST", f"/{machine}/start")
        await client.ok("POST", f"/{machine}/signal", {"signal": 9})
        await until(client.fleet, lambda: found.state == "stopped")


@pytest.mark.parametrize("said", ["0s", "", None, 0])
async def test_a_stop_without_a_timeout_of_its_own_leaves_time_to_drain(tmp_path: Path, said: object) -> None:
    async with serving(tmp_path) as client:
        config = shell("trap 'sleep 0.2; exit 0' TERM; echo up; while :; do sleep 0.01; done")
        machine = await client.create(config)
        log = tmp_path / "logs" / f"{machine}.log"
        await eventually(lambda: log.exists() and "up" in log.read_text())
        # flyctl says "0s" where nobody has named a timeout.
        await client.ok("POST", f"/{machine}/stop", {"signal": "SIGTERM", "timeout": said})
        await client.ok("GET", f"/{machine}/wait?state=stopped")
        exits = [event for event in await client.ok("GET", f"/{machine}/events") if event["type"] == "exit"]
        assert exits[0]["request"]["exit_event"]["exit_code"] == 0


async def test_restart_answers_first(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        machine = await client.create()
        found = client.fleet.find(machine)
        first = found.pid
        await client.ok("POST", f"/{machine}/restart?force_stop=true&timeout=1s")
        await until(client.fleet, lambda: found.state == "started" and found.pid not in (first, None))


@pytest.mark.parametrize(("verb", "state"), [("suspend", "suspended"), ("stop", "stopped")])
async def test_a_machine_can_suspend_and_stop_itself(tmp_path: Path, verb: str, state: str) -> None:
    script = (
        "import http.client, os, socket\n"
        "class Api(http.client.HTTPConnection):\n"
        "    def connect(self):\n"
        "        self.sock = socket.socket(socket.AF_UNIX)\n"
        "        self.sock.connect(os.environ['FLY_API_SOCKET'])\n"
        "api = Api('flaps')\n"
        "app, me = os.environ['FLY_APP_NAME'], os.environ['FLY_MACHINE_ID']\n"
        f"api.request('POST', f'/v1/apps/{{app}}/machines/{{me}}/{verb}')\n"
        "print('answer', api.getresponse().read(), flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    program = tmp_path / "self.py"
    program.write_text(script)
    async with serving(tmp_path) as client:
        config = shell(f"exec python3 {program}")
        machine = await client.create(config)
        found = client.fleet.find(machine)
        await until(client.fleet, lambda: found.state == state)
    assert """answer b'{"ok":true}'""" in (tmp_path / "logs" / f"{machine}.log").read_text()


async def test_rate_limits_can_be_switched_on(tmp_path: Path) -> None:
    async with serving(tmp_path, api=ApiSettings(rate_limits=True)) as client:
        machine = client.fleet.create(WEB)
        answers = await asyncio.gather(*(client.ask("POST", f"/{machine.id}/cordon") for _ in range(30)))
        assert [status for status, _ in answers].count(200) >= 3
        status, document = next(answer for answer in answers if answer[0] != 200)
        assert status == 429
        assert document["error"] == "resource_exhausted: rate limit exceeded"
