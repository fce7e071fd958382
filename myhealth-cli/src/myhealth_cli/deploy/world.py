"""What `doctor` looks at: tools, Fly, addresses. Each look says why it cannot be taken."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp

from myhealth_cli.deploy import flyctl, state
from myhealth_cli.deploy.errors import FlyctlError, NothingChangedError
from myhealth_cli.deploy.flyctl import Flyctl
from myhealth_cli.deploy.machines_api import LOGIN
from myhealth_cli.tokens import minimal_env

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from myhealth_cli.deploy.environments import Deployed
    from myhealth_cli.deploy.state import App

T = TypeVar("T")

LOOK_S: Final = 20.0
"""Seconds that one look may take."""
_NETWORK: Final = "Is the network there?"
_HTTP: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)


class CannotSay(Exception):
    """Something could not be looked at; `str` says why, `hint` what would let it be."""

    def __init__(self, because: str, hint: str) -> None:
        super().__init__(because)
        self.hint = hint


class NotThere(CannotSay):
    """Fly was asked, and what was looked for is not there."""


class World:
    """This machine, this checkout and, unless `offline`, what can be reached from here."""

    def __init__(self, root: Path | None, *, offline: bool) -> None:
        self.root = root
        self.offline = offline
        self._taken: dict[str, asyncio.Future[Any]] = {}

    async def _once(self, key: str, look: Callable[[], Awaitable[T]]) -> T:
        """Take a look that several checks need, once."""
        if key not in self._taken:
            self._taken[key] = asyncio.ensure_future(look())
        return await asyncio.shield(self._taken[key])

    def checkout(self) -> Path:
        """Return the checkout. Raises CannotSay: there is none."""
        if self.root is None:
            raise CannotSay("this is not a checkout of the repository", "cd to it; deploys begin there")
        return self.root

    def online(self) -> None:
        """Refuse when nothing may be asked over the network. Raises CannotSay."""
        if self.offline:
            raise CannotSay("--offline", "leave it out")

    def flyctl(self) -> Flyctl:
        """Return flyctl. Raises CannotSay."""
        try:
            return Flyctl(flyctl.find(folder=self.root), self.root or Path.cwd())
        except NothingChangedError as error:
            raise CannotSay(str(error), error.hint) from error

    async def fly(self) -> Flyctl:
        """Return a flyctl that is logged in. Raises CannotSay."""
        self.online()
        found = self.flyctl()

        async def look() -> CannotSay | None:
            try:
                await found.run("auth", "whoami", seconds=LOOK_S)
            except FlyctlError as error:
                if "no access token" in str(error):
                    return NotThere("not logged in to Fly", LOGIN)
                return CannotSay(str(error), error.hint or f"{_NETWORK} Else {LOGIN}")
            return None

        if wrong := await self._once("login", look):
            raise type(wrong)(str(wrong), wrong.hint)
        return found

    async def app(self, environment: Deployed) -> App:
        """Return an app that exists. Raises CannotSay, NotThere: this login sees none."""
        fly = await self.fly()

        async def look() -> App | str:
            try:
                async with asyncio.timeout(LOOK_S):
                    return await state.read(fly, environment.app)
            except FlyctlError as error:
                return str(error)
            except TimeoutError:
                return f"Fly did not answer within {LOOK_S:g} s"

        found = await self._once(f"app {environment.app}", look)
        if isinstance(found, str):
            raise CannotSay(found, f"{_NETWORK} And is the token this app's?")
        if not found.exists:
            raise NotThere(
                f"the app {environment.app} is not there, or this login does not see it",
                f"myhealth setup {environment.name}",
            )
        return found

    async def run(self, *words: str) -> tuple[int, str]:
        """Run a tool and return its code and the last line it wrote. Raises CannotSay: it is not there."""
        program = words[0] if "/" in words[0] else shutil.which(words[0])
        if program is None:
            raise CannotSay(f"{words[0]} is not installed", f"install {words[0]}")
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *words[1:],
                cwd=self.root,
                env=minimal_env(keep=("GH_TOKEN", "GITHUB_TOKEN", "XDG_CONFIG_HOME")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise CannotSay(
                f"{words[0]} does not start ({type(error).__name__})", f"install {words[0]} for this machine"
            ) from error
        try:
            async with asyncio.timeout(LOOK_S):
                out, _ = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise CannotSay(f"{words[0]} did not end within {LOOK_S:g} s", _NETWORK) from error
        return process.returncode or 0, out.decode("utf-8", "replace").strip()

    async def addresses(self, url: str) -> list[str]:
        """Resolve an address's host. Raises CannotSay."""
        self.online()
        host = urlsplit(url).hostname or ""
        try:
            async with asyncio.timeout(LOOK_S):
                found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise CannotSay(
                f"{host} does not resolve", f"{_NETWORK} An app gets its address with its first deploy"
            ) from error
        return sorted({str(each[4][0]) for each in found})

    async def certificate_days(self, url: str) -> float:
        """Return how many days the certificate that a host shows is still good. Raises CannotSay."""
        self.online()
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(LOOK_S):
                _, writer = await asyncio.open_connection(
                    parts.hostname, parts.port or 443, ssl=ssl.create_default_context()
                )
        except ssl.SSLCertVerificationError as error:
            raise CannotSay(
                f"the certificate is not good: {error.verify_message}", "`fly certs list`"
            ) from error
        except (OSError, TimeoutError) as error:
            raise CannotSay(f"no TLS connection ({type(error).__name__})", _NETWORK) from error
        shown = writer.get_extra_info("peercert") or {}
        writer.close()
        return (ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / 86400

    async def get(self, url: str) -> tuple[int, str]:
        """Ask an address. Raises CannotSay."""
        self.online()
        try:
            async with (
                aiohttp.ClientSession(timeout=_HTTP) as http,
                http.get(url, allow_redirects=False) as response,
            ):
                return response.status, (await response.text(errors="replace"))[:300]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CannotSay(
                f"{urlsplit(url).hostname} does not answer ({type(error).__name__})",
                f"{_NETWORK} Else `myhealth logs`",
            ) from error

    async def reach(self, host: str, port: int) -> None:
        """Open a TCP connection and close it. Raises CannotSay."""
        self.online()
        try:
            async with asyncio.timeout(LOOK_S):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise CannotSay(
                f"{host}:{port} cannot be reached ({type(error).__name__})",
                f"{_NETWORK} Is the project paused?",
            ) from error
        writer.close()

    @staticmethod
    def variable(name: str) -> str:
        """Return a variable. Raises CannotSay."""
        if not (value := os.environ.get(name, "").strip()):
            raise CannotSay(f"{name} is not set here", f"export {name}, to have it looked at")
        return value

    @staticmethod
    def python() -> str:
        """Return the Python this runs with."""
        return ".".join(str(each) for each in sys.version_info[:3])
