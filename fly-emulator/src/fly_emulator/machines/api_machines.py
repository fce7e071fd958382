"""The handlers of `/v1/apps/{app}/machines`."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from fly_emulator.errors import StateError
from fly_emulator.machine_config import MachineConfig, duration_seconds
from fly_emulator.machines import lease, process, states, wire
from fly_emulator.machines.api_context import API, NONCE, body, reply
from fly_emulator.machines.fleet import Fleet
from fly_emulator.machines.machine import Machine
from fly_emulator.machines.process import signal_number

_BASE: Final = "/v1/apps/{app}/machines"
_ONE: Final = _BASE + "/{id}"
_MAX_WAIT: Final = 60
_EXEC_TIMEOUT: Final = 60.0


def _shown(fleet: Fleet, machine: Machine) -> dict[str, Any]:
    held = fleet.leases.current(machine.id)
    return wire.encode_machine(machine, nonce=None if held is None else held.nonce)


async def _list(request: web.Request) -> web.StreamResponse:
    fleet = request.app[API].fleet(request)
    query = request.query
    found = fleet.all_machines() if query.get("include_deleted") == "true" else fleet.machines()
    wanted = set(query.get("state", "").split(",")) - {""}
    metadata = {key.removeprefix("metadata."): query[key] for key in query if key.startswith("metadata.")}
    machines = [
        machine
        for machine in found
        if query.get("region") in (None, machine.region)
        and (not wanted or machine.state in wanted)
        and metadata.items() <= machine.config.metadata.items()
    ]
    if query.get("summary") == "true":
        return reply([wire.encode_summary(machine) for machine in machines])
    return reply([_shown(fleet, machine) for machine in machines])


async def _create(request: web.Request) -> web.StreamResponse:
    fleet = request.app[API].fleet(request)
    document = await body(request)
    config = _config(document)
    machine = fleet.create(
        config,
        name=document.get("name") or None,
        region=document.get("region") or None,
        cordoned=bool(document.get("skip_service_registration")),
    )
    if document.get("lease_ttl"):
        ttl = _number(document["lease_ttl"], "lease_ttl")
        fleet.leases.acquire(machine.id, ttl=ttl, nonce=None, version=machine.record.instance_id)
    answer = reply(_shown(fleet, machine))
    fleet.background(machine.prepare if document.get("skip_launch") else machine.start, machine)
    return answer


def _config(document: Mapping[str, Any]) -> MachineConfig:
    config = wire.decode_config(document.get("config"))
    if not config.image:
        raise StateError("invalid_argument: config.image is required", status=400)
    return config


async def _get(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].machine(request)
    wanted = request.query.get("version") or request.query.get("instance_id")
    document = _shown(fleet, machine)
    if wanted and wanted != machine.record.instance_id:
        version = next((one for one in machine.record.versions if one.id == wanted), None)
        if version is None:
            raise StateError(f"not_found: machine version not found: {wanted}", status=404)
        document |= {
            "state": "replaced",
            "instance_id": wanted,
            "version": wanted,
            "config": wire.encode_config(version.config),
        }
    return reply(document)


async def _update(request: web.Request) -> web.StreamResponse:
    """Answer as soon as the new version is in force; the replacing goes on after the answer."""
    fleet, machine = request.app[API].leased(request)
    document = await body(request)
    current = document.get("current_version")
    if current and current != machine.record.instance_id:
        raise StateError(
            f"aborted: machine version is {machine.record.instance_id}, not {current}", status=409
        )
    config = _config(document)
    fleet.provision(config)
    states.admit("update", machine.state)
    accepted = asyncio.Event()
    done = asyncio.ensure_future(accepted.wait())
    launch = not document.get("skip_launch")
    task = fleet.background(
        lambda: fleet.update(machine.id, config, launch=launch, accepted=accepted.set), machine
    )
    await asyncio.wait([task, done], return_when=asyncio.FIRST_COMPLETED)
    done.cancel()
    if not accepted.is_set():
        raise StateError(states.refusal("update", machine.state))
    return reply(_shown(fleet, machine))


async def _delete(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].leased(request)
    force = "true" in (request.query.get("force"), request.query.get("kill"))
    await machine.destroy(force=force)
    fleet.leases.forget(machine.id)
    return reply({"ok": True})


async def _start(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].leased(request)
    previous = machine.state
    await machine.start()
    return reply({"previous_state": previous, "migrated": False, "new_host": ""})


async def _answer_then(
    request: web.Request, fleet: Fleet, machine: Machine, work: Callable[[], Coroutine[Any, Any, None]]
) -> web.StreamResponse:
    """Send the answer first: the machine that asks may be the one that is frozen or stopped."""
    answer = reply({"ok": True})
    await answer.prepare(request)
    await answer.write_eof()

    async def later() -> None:
        await asyncio.sleep(fleet.settings.reply_grace)
        await work()

    fleet.background(later, machine)
    return answer


async def _stop(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].leased(request)
    name, seconds = _stopping(await body(request))
    if not states.admit("stop", machine.state):
        return reply({"ok": True})
    return await _answer_then(
        request, fleet, machine, lambda: machine.stop(kill_signal=name, kill_timeout=seconds)
    )


def _stopping(document: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Read signal and timeout; a number is Go's duration, nanoseconds, unless it is too small for one.

    A timeout of nothing is none: flyctl says "0s" where nobody has named one (StopMachineInput of fly-go).
    """
    name, timeout = document.get("signal") or None, document.get("timeout")
    if name is not None:
        signal_number(name)
    if timeout in (None, "", 0):
        return name, None
    if isinstance(timeout, int | float):
        return name, timeout / 1e9 if timeout >= 1e6 else float(timeout)
    try:
        return name, duration_seconds(str(timeout)) or None
    except ValueError as error:
        raise StateError(f"invalid_argument: timeout: {error}", status=400) from error


async def _suspend(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].leased(request)
    if not states.admit("suspend", machine.state):
        return reply({"ok": True})
    return await _answer_then(request, fleet, machine, machine.suspend)


async def _restart(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].leased(request)
    name, seconds = _stopping(request.query)
    if request.query.get("force_stop") == "true":
        name = "SIGKILL"
    if not states.admit("restart", machine.state):
        return reply({"ok": True})
    return await _answer_then(
        request, fleet, machine, lambda: machine.restart(kill_signal=name, kill_timeout=seconds)
    )


async def _signal(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    number = signal_number((await body(request)).get("signal") or "")
    machine.signal(number)
    return reply({"ok": True})


async def _exec(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    document = await body(request)
    states.admit("exec", machine.state)
    argv = document.get("command") or shlex.split(document.get("cmd") or "")
    if not argv:
        raise StateError("invalid_argument: cmd is required", status=400)
    seconds = _number(document.get("timeout") or _EXEC_TIMEOUT, "timeout")
    stdin = str(document.get("stdin") or "").encode()
    env = machine.environment()
    try:
        code, output, errors = await process.run(argv, env=env, cwd=machine.cwd, stdin=stdin, timeout=seconds)
    except TimeoutError:
        raise StateError("deadline_exceeded: the command did not end in time", status=408) from None
    except OSError as error:
        raise StateError(f"unknown: {error}", status=500) from error
    return reply(
        {
            "exit_code": max(code, 0),
            "exit_signal": max(-code, 0),
            "stdout": output.decode(errors="replace"),
            "stderr": errors.decode(errors="replace"),
        }
    )


async def _ps(request: web.Request) -> web.StreamResponse:
    """Show the main child and where it listens, as seen inside: at the internal ports, on all addresses."""
    _, machine = request.app[API].machine(request)
    if machine.pid is None:
        return reply([])
    sockets = [{"proto": "tcp", "address": f"0.0.0.0:{port}"} for port in sorted(machine.listening())]
    shown = {"pid": machine.pid, "stime": 0, "rtime": 0, "cpu": 0, "rss": 0, "command": "app"}
    return reply([{**shown, "directory": str(machine.cwd or "/"), "listen_sockets": sockets}])


async def _wait(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].machine(request)
    wanted = request.query.getall("state", ["started"])
    version = request.query.get("instance_id") or request.query.get("version")
    seconds = _number(request.query.get("timeout") or _MAX_WAIT, "timeout")
    if not 0 < seconds <= _MAX_WAIT:
        raise StateError(f"invalid_argument: timeout must be between 1 and {_MAX_WAIT}", status=400)
    for state in wanted:
        if state != "settled" and state not in states.WAITABLE:
            raise StateError(f"invalid_argument: cannot wait for state: {state}", status=400)
    try:
        async with asyncio.timeout(seconds):
            while not _reached(machine, wanted, version):
                ticket = fleet.changed.ticket
                if not _reached(machine, wanted, version):
                    await ticket.wait()
    except TimeoutError:
        raise StateError(
            "deadline_exceeded: machine failed to reach desired state, "
            f"{', '.join(wanted)}, currently {machine.state}",
            status=408,
        ) from None
    return reply({"ok": True, "state": machine.state, "version": machine.record.instance_id})


def _reached(machine: Machine, wanted: list[str], version: str | None) -> bool:
    """Say whether the state is there. Raises StateError when the version waited for never gets there."""
    state = machine.state
    if version and version != machine.record.instance_id:
        if all(version != known.id for known in machine.record.versions):
            raise StateError(f"not_found: machine version not found: {version}", status=404)
        raise StateError(f"aborted: machine version {version} has been replaced", status=409)
    if state == "destroyed" and "destroyed" not in wanted:
        # flyctl takes 404 for "it was quick": a release_command that is over (waitForReleaseCommandToFinish).
        raise StateError("not_found: machine has been destroyed", status=404)
    return state in wanted or ("settled" in wanted and state in states.PERSISTENT | states.TERMINAL)


async def _get_lease(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].machine(request)
    held = fleet.leases.current(machine.id)
    if held is None:
        raise StateError("lease not found", status=404)
    return reply({"status": "success", "data": held.public()})


async def _acquire_lease(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].machine(request)
    document = await body(request)
    ttl = _number(request.query.get("ttl") or document.get("ttl") or lease.DEFAULT_TTL, "ttl")
    held = fleet.leases.acquire(
        machine.id,
        ttl=ttl,
        nonce=request.headers.get(NONCE),
        version=machine.record.instance_id,
        description=str(document.get("description") or ""),
    )
    return reply({"status": "success", "data": held.public()}, 201)


async def _release_lease(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].machine(request)
    if not request.headers.get(NONCE):
        raise StateError(f"invalid_argument: {NONCE} header is required", status=400)
    fleet.leases.release(machine.id, request.headers.get(NONCE))
    return reply({"status": "success", "data": {"ok": True}})


async def _cordon(request: web.Request) -> web.StreamResponse:
    fleet, machine = request.app[API].leased(request)
    fleet.cordon(machine.id, cordoned=request.path.endswith("/cordon"))
    return reply({"ok": True})


async def _metadata(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    return reply(machine.config.metadata)


async def _set_metadata(request: web.Request) -> web.StreamResponse:
    """Change one pair; the machine keeps its version (superfly/docs runtime-environment)."""
    _, machine = request.app[API].machine(request)
    value = (await body(request)).get("value")
    if not isinstance(value, str):
        raise StateError("invalid_argument: value is required", status=400)
    machine.set_metadata(request.match_info["key"], value)
    return web.Response(status=204)


async def _delete_metadata(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    machine.set_metadata(request.match_info["key"], None)
    return web.Response(status=204)


async def _events(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    limit = int(_number(request.query.get("limit") or 20, "limit"))
    return reply(msgspec.to_builtins(machine.record.events[:limit]))


async def _versions(request: web.Request) -> web.StreamResponse:
    _, machine = request.app[API].machine(request)
    return reply([wire.encode_version(version) for version in reversed(machine.record.versions)])


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise StateError(f"invalid_argument: {name}: {value!r} is not a number", status=400) from None


ROUTES: Final = (
    web.get(_BASE, _list),
    web.post(_BASE, _create),
    web.get(_ONE, _get),
    web.post(_ONE, _update),
    web.delete(_ONE, _delete),
    web.post(_ONE + "/start", _start),
    web.post(_ONE + "/stop", _stop),
    web.post(_ONE + "/suspend", _suspend),
    web.post(_ONE + "/restart", _restart),
    web.post(_ONE + "/signal", _signal),
    web.post(_ONE + "/exec", _exec),
    web.get(_ONE + "/ps", _ps),
    web.get(_ONE + "/wait", _wait),
    web.get(_ONE + "/lease", _get_lease),
    web.post(_ONE + "/lease", _acquire_lease),
    web.delete(_ONE + "/lease", _release_lease),
    web.post(_ONE + "/cordon", _cordon),
    web.post(_ONE + "/uncordon", _cordon),
    web.get(_ONE + "/metadata", _metadata),
    web.post(_ONE + "/metadata/{key}", _set_metadata),
    web.delete(_ONE + "/metadata/{key}", _delete_metadata),
    web.get(_ONE + "/events", _events),
    web.get(_ONE + "/versions", _versions),
)
