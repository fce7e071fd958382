"""Bearer tokens: one that was given, or a development token from `agent-backend token`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Protocol

from myhealth_cli.errors import MyHealthError

if TYPE_CHECKING:
    from collections.abc import Mapping


class TokenError(MyHealthError):
    """No token could be had."""


class TokenSource(Protocol):
    """Gives the token for a request; `renew` says that the last one was refused. Raises TokenError."""

    async def token(self, *, renew: bool = False) -> str:
        """Return a token."""
        ...


class GivenToken:
    """The token the person passed; it cannot be renewed."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self, *, renew: bool = False) -> str:
        """Return the token. Raises TokenError when it was refused."""
        if renew:
            raise TokenError("the server refuses the token", hint="pass a fresh one with --token")
        return self._token


class DevelopmentToken:
    """A made-up user's token, signed with the key in DEV_KEY_DIR (by default .local/keys)."""

    def __init__(self, user: str, env: Mapping[str, str] | None = None) -> None:
        self._user = user
        self._env = minimal_env(keep=("DEV_KEY_DIR", "AUTH_ISSUER", "AUTH_AUDIENCE")) if env is None else env
        self._token = ""

    async def token(self, *, renew: bool = False) -> str:
        """Return the token, made at the first call. Raises TokenError."""
        if renew and self._token:
            self._token, refused = "", self._token
            if (fresh := await self.token()) == refused:
                raise TokenError("the server refuses the development token", hint=_OTHER_KEY)
            return fresh
        if not self._token:
            self._token = await self._issue()
        return self._token

    async def _issue(self) -> str:
        process = await asyncio.create_subprocess_exec(
            *backend_command("token", "--user", self._user),
            env=dict(self._env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise TokenError(
                f"no development token: {err.decode('utf-8', 'replace').strip()}",
                hint="pass a token with --token",
            )
        return out.decode().strip()


_OTHER_KEY = (
    "It checks with another key: run this in the folder where the server was started, or set DEV_KEY_DIR."
)

_HARMLESS = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


def minimal_env(*, keep: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    """Return an environment for a child: what any program needs, what `keep` names, and `more`.

    A child never gets the whole environment: the shell's secrets are none of its business.
    """
    inherited = {name: os.environ[name] for name in (*_HARMLESS, *keep) if name in os.environ}
    return {**inherited, **more}


def backend_command(*arguments: str) -> list[str]:
    """Return the command line of `agent-backend`; the packages meet as commands, never as imports."""
    return [sys.executable, "-m", "agent_backend", *arguments]
