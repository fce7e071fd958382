"""One emulated project: what all requests share."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, TypeAlias

import jwt
import msgspec
from aiohttp import web

from supabase_emulator.clock import Clock
from supabase_emulator.keys import KeyRing
from supabase_emulator.settings import Settings
from supabase_emulator.store import Session, Store, User, load

OutageKind: TypeAlias = Literal["reset", "status", "slow", "garbage", "empty", "huge"]

_LEGACY_SECONDS = 10 * 365 * 86400
"""Legacy API keys are tokens that end in ten years."""


class Outage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is wrong with the JWKS, or with `everything`: for the next `count` requests, or until the end."""

    kind: OutageKind
    count: int | None = None
    status: int = 503
    seconds: float = 30.0
    """How long `slow` waits before it answers."""
    everything: bool = False


class Seen(msgspec.Struct, kw_only=True):
    """A request as `/_emulator/requests` tells it: never a header's or a body's content."""

    method: str
    path: str
    status: int
    key: str
    """Which API key came with it: none, publishable, secret, anon, service_role, unknown."""


class Project:
    """Keys, users, faults and records of one server."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        kept = load(settings.state)
        self.keys = KeyRing(settings.algorithm, kept.keys)
        kept.keys = self.keys.keys
        self.store = Store(kept, settings.state)
        self.store.save()
        self.url = ""
        """Where the server listens; set before the first request."""
        self.token_seconds = settings.token_seconds
        self.outage: Outage | None = None
        self.seen: deque[Seen] = deque(maxlen=settings.keep_requests)
        self.legacy = {role: self._legacy_key(role) for role in ("anon", "service_role")}

    @property
    def issuer(self) -> str:
        """The `iss` of every token."""
        return self.url + "/auth/v1"

    def _legacy_key(self, role: str) -> str:
        # A fixed time, so that the key is the same after a restart.
        claims = {"iss": "supabase", "ref": "emulated", "role": role, "iat": 1_700_000_000}
        claims["exp"] = 1_700_000_000 + _LEGACY_SECONDS
        return jwt.encode(claims, self.store.kept.jwt_secret, "HS256")

    def kind_of_key(self, key: str | None) -> str:
        """Name an API key's kind."""
        if not key:
            return "none"
        known = {
            self.store.kept.publishable_key: "publishable",
            self.store.kept.secret_key: "secret",
            self.legacy["anon"]: "anon",
            self.legacy["service_role"]: "service_role",
        }
        return known.get(key, "unknown")

    def access_token(self, user: User, session: Session) -> str:
        """Return a token with the claims of Supabase's "JWT Claims Reference"."""
        now = int(self.clock())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": user.id,
            "aud": "authenticated",
            "exp": now + self.token_seconds,
            "iat": now,
            "email": user.email,
            "phone": "",
            "app_metadata": user.app_metadata,
            "user_metadata": user.user_metadata,
            "role": user.role,
            "aal": "aal1",
            "amr": [{"method": session.method, "timestamp": session.at}],
            "session_id": session.id,
            "is_anonymous": user.is_anonymous,
        }
        return self.keys.sign(claims)

    def fault(self, *, jwks: bool) -> Outage | None:
        """Return what goes wrong with this request, counting it."""
        outage = self.outage
        if outage is None or not (jwks or outage.everything):
            return None
        if outage.count is not None:
            outage.count -= 1
            if outage.count <= 0:
                self.outage = None
        return outage


PROJECT: web.AppKey[Project] = web.AppKey("project", Project)
