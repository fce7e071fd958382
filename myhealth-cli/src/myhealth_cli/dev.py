"""`myhealth dev`: the whole system on one machine, and a conversation with it.

Postgres, the emulated Messages API (the real one if ANTHROPIC_API_KEY is set), the issuer of tokens and the
local Fly with the backend's machine are children of this process; a chat is the reason they run, and when it
ends, they end.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from rich.console import Console

from myhealth_cli.apple_health.truth import HOME
from myhealth_cli.client import Client, Patience
from myhealth_cli.consent import missing
from myhealth_cli.demo import Demo
from myhealth_cli.processes import AlreadyRunningError, Family
from myhealth_cli.progress import Steps
from myhealth_cli.servers import PortInUseError, Servers, check_port
from myhealth_cli.signals import Interrupts
from myhealth_cli.tokens import Issuer, SignedIn

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from myhealth_cli.machine import Machine

_IDLE_S: Final = 20.0
_SCRIPT_IDLE_S: Final = 3.0
"""Idle for so long, the backend sleeps; IDLE_SECONDS says otherwise. The script waits for it."""
_EMULATED: Final = "emulated, no AI in it (ANTHROPIC_API_KEY brings Claude)"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `myhealth dev` was asked for. `folder` holds logs and data; `chat`: talk, or only serve."""

    port: int
    folder: Path
    user: str
    fresh: bool = False
    chat: bool = True
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def state(self) -> Path:
        """The state folder of this port: two stacks on two ports share nothing but the development key."""
        return (self.folder / str(self.port)).resolve()


def run(options: Options) -> int:
    """Run the stack until its conversation ends or a signal comes; return the exit code.

    Raises MyHealthError when something cannot be started or the conversation failed.
    """
    return asyncio.run(_run(options))


async def _run(options: Options) -> int:
    interrupts = Interrupts()
    with interrupts.installed():
        try:
            await _Stack(options, interrupts).run()
        except asyncio.CancelledError:
            if interrupts.received is None:
                raise
            return 128 + interrupts.received
    return 0


class _Stack:
    """One run, from the first server to the last word."""

    def __init__(self, options: Options, interrupts: Interrupts) -> None:
        self._options = options
        self._interrupts = interrupts
        self._console = Console()
        self._steps = Steps(self._console)

    async def run(self) -> None:
        options = self._options
        options.state.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            try:
                family = await stack.enter_async_context(Family(options.state))
            except AlreadyRunningError as error:
                by = f" by another `myhealth dev` (process {error.pid})"
                raise PortInUseError(options.port, by) from None
            check_port(options.port)
            demo = Demo(options.state, dt.datetime.now(ZoneInfo(HOME)).date(), fresh=options.fresh)
            stack.push_async_callback(demo.clean)
            demo.prepare()
            servers = Servers(family, options.state, options.port, options.env)
            machine = await stack.enter_async_context(await self._start(servers))
            stack.callback(Issuer.file(options.state).unlink, missing_ok=True)
            await _first(self._talk(servers, demo, machine), servers.watch(), machine.run())
            self._console.print("[dim]stopping ...[/]")

    @property
    def _talks(self) -> bool:
        return self._options.chat and sys.stdin.isatty() and sys.stdout.isatty()

    async def _start(self, servers: Servers) -> Machine:
        with self._steps.step("Postgres, the model and the issuer"):
            await servers.start_stores(fresh=self._options.fresh)
        with self._steps.step("Backend, on a machine of the local Fly"):
            scripted = self._options.chat and not self._talks
            machine = await servers.start_backend(_SCRIPT_IDLE_S if scripted else _IDLE_S)
        model = "Claude, billed to your ANTHROPIC_API_KEY" if servers.real_model else _EMULATED
        self._console.print(f"  {servers.url} · model: {model}", style="dim", highlight=False, soft_wrap=True)
        self._console.print(f"  machine: {machine.url}", style="dim", highlight=False, soft_wrap=True)
        return machine

    async def _talk(self, servers: Servers, demo: Demo, machine: Machine) -> None:
        tokens = SignedIn(servers.issuer, self._options.user)
        async with Client(servers.url, tokens, Patience(total_s=60), sending=machine.sending) as client:
            await self._consent(client)
            if await demo.missing(client):
                token = await tokens.token()
                with self._steps.bar(f"Demo data: {demo.span.days} days of Apple Health") as update:
                    await demo.load(client, token, update)
            if not self._options.chat:
                self._console.print("Ready. Ctrl-C stops everything.")
                await asyncio.Event().wait()
            elif self._talks:
                from myhealth_cli.chat import chat  # noqa: PLC0415 - brings the terminal's libraries

                await chat(client, self._interrupts, machine)
            else:
                from myhealth_cli.script import play  # noqa: PLC0415 - only without a terminal

                await play(client, sys.stdout, machine)

    async def _consent(self, client: Client) -> None:
        """Agree for the demo user, who is nobody; `myhealth chat` shows the texts whole and asks."""
        texts = await missing(client)
        for text in texts:
            await client.give_consent(text)
        if texts:
            titles = " · ".join(text.title for text in texts)
            line = f"[green]✓[/] The demo user consents: {titles}"
            self._console.print(line, highlight=False, soft_wrap=True)


async def _first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them ends, end the others, and raise what it raised."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
