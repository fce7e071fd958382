"""Bearer tokens: one that was given, a session with a local stack's issuer, or `agent-backend token`'s.

The issuer speaks Supabase Auth's HTTP; `myhealth dev` starts it and leaves its address in the state folder.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from myhealth_cli.errors import MyHealthError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PASSWORD: Final = "development only"  # noqa: S105 - of made-up users, at an issuer that guards nothing
_EARLY_S: Final = 60.0
"""A token is exchanged so long before its end, or a quarter of its life before."""
_PATIENCE_S: Final = 10.0
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


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


class Issuer(msgspec.Struct, frozen=True):
    """Where a stack's tokens come from; `publishable_key` is what an app has."""

    url: str
    publishable_key: str

    @staticmethod
    def file(state: Path) -> Path:
        """Return where the stack of a state folder says who its issuer is."""
        return state / "issuer.json"

    @classmethod
    def of(cls, url: str, folder: Path) -> Issuer | None:
        """Return the issuer of the local stack that serves `url`; None if that is no local stack."""
        parts = urlsplit(url)
        if parts.hostname not in _HERE or parts.port is None:
            return None
        try:
            return msgspec.json.decode(cls.file(folder / str(parts.port)).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError):
            return None


class _Session(msgspec.Struct, frozen=True):
    access_token: str
    refresh_token: str
    expires_in: float


class SignedIn:
    """A user's session with an issuer; its token is exchanged before it ends.

    Made-up users of a local stack have all the same password and are signed up when they are new.
    """

    def __init__(self, issuer: Issuer, user: str, *, password: str = _PASSWORD, sign_up: bool = True) -> None:
        self._issuer = issuer
        self._email = user if "@" in user else f"{user}@example.com"
        self._password = password
        self._sign_up = sign_up
        self._session: _Session | None = None
        self._exchange_at = 0.0
        self._ends_at = 0.0
        self._busy = asyncio.Lock()

    async def token(self, *, renew: bool = False) -> str:
        """Return a token that is good for a while. Raises TokenError."""
        async with self._busy:
            now = time.time()
            if self._session is not None and not renew and now < self._exchange_at:
                return self._session.access_token
            try:
                self._session = await self._open()
            except msgspec.DecodeError as error:
                raise TokenError(
                    f"the issuer at {self._issuer.url} answers something else than a session",
                    hint="Is the address right, and nothing between (a proxy, a login page)?",
                ) from error
            except (aiohttp.ClientError, TimeoutError) as error:
                if self._session is not None and not renew and now < self._ends_at:
                    return self._session.access_token  # the issuer is away; that need not stop anybody yet
                raise TokenError(
                    f"the issuer at {self._issuer.url} does not answer ({type(error).__name__})",
                    hint="Is `make run` still running? It starts the issuer; or pass a token with --token.",
                ) from error
            life = self._session.expires_in
            self._ends_at = now + life
            self._exchange_at = self._ends_at - min(_EARLY_S, life / 4)
            return self._session.access_token

    async def _open(self) -> _Session:
        """Exchange the refresh token, or sign in, or sign up: whichever works first."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
        headers = {"apikey": self._issuer.publishable_key}
        credentials = {"email": self._email, "password": self._password}
        tries = [("token?grant_type=password", credentials)]
        if self._sign_up:
            tries.append(("signup", credentials))
        if self._session is not None:
            refresh = {"refresh_token": self._session.refresh_token}
            tries.insert(0, ("token?grant_type=refresh_token", refresh))
        answer = b""
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
            for path, body in tries:
                async with http.post(f"{self._issuer.url}/auth/v1/{path}", json=body) as response:
                    answer = await response.read()
                    if response.status == 200:
                        return msgspec.json.decode(answer, type=_Session)
        raise TokenError(f"the issuer refuses {self._email}: {answer[:200].decode('utf-8', 'replace')}")


def tokens_for(url: str, token: str | None, user: str) -> TokenSource:
    """Return the tokens for a server: the given one, else those of the local stack it belongs to."""
    if token:
        return GivenToken(token)
    issuer = Issuer.of(url, Path(os.environ.get("MYHEALTH_DATA") or ".local/dev"))
    return DevelopmentToken(user) if issuer is None else SignedIn(issuer, user)


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
