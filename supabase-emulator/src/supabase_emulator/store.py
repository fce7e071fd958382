"""Users, sessions and refresh tokens, in memory and, if there is one, in a state file.

The file is written whole after every change, through a neighbour that replaces it, for its owner's eyes only.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

from supabase_emulator.keys import SigningKey

_SCRYPT: Final[dict[str, int]] = {"n": 2**12, "r": 8, "p": 1}


class User(msgspec.Struct, kw_only=True):
    """One account. `password` is a salted hash, empty for who signed in anonymously."""

    id: str
    created_at: str
    email: str = ""
    password: str = ""
    role: str = "authenticated"
    is_anonymous: bool = False
    user_metadata: dict[str, Any] = {}
    app_metadata: dict[str, Any] = {}
    last_sign_in_at: str | None = None


class Session(msgspec.Struct, kw_only=True):
    """One sign-in. `method` and `at` are its entry in `amr`."""

    id: str
    user_id: str
    method: str
    at: int


class RefreshToken(msgspec.Struct, kw_only=True):
    """A refresh token works once; `parent` is the one it was exchanged for."""

    token: str
    session_id: str
    parent: str | None = None
    used_at: float | None = None


class Kept(msgspec.Struct, kw_only=True):
    """What the state file holds."""

    secret_key: str
    publishable_key: str
    jwt_secret: str
    """Signs the legacy anon and service_role keys only, never a user's token."""
    keys: list[SigningKey] = []
    users: list[User] = []
    sessions: list[Session] = []
    refresh_tokens: list[RefreshToken] = []


class StateFileError(Exception):
    """The state file cannot be read or is not ours."""


def load(path: Path | None) -> Kept:
    """Read the state, or begin one. Raises StateFileError."""
    if path is not None and path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError) as error:
            raise StateFileError(f"{path} cannot be used: {type(error).__name__}") from error
    return Kept(
        secret_key="sb_secret_emulated_" + secrets.token_urlsafe(18),
        publishable_key="sb_publishable_emulated_" + secrets.token_urlsafe(18),
        jwt_secret=secrets.token_urlsafe(48),
    )


class Store:
    """Finds and changes what is kept."""

    def __init__(self, kept: Kept, path: Path | None) -> None:
        self.kept = kept
        self._path = path
        self.users = {user.id: user for user in kept.users}
        self.sessions = {each.id: each for each in kept.sessions}
        self.refresh_tokens = {each.token: each for each in kept.refresh_tokens}

    def save(self) -> None:
        """Write everything down; without a state file there is nothing to do."""
        kept = self.kept
        kept.users = list(self.users.values())
        kept.sessions = list(self.sessions.values())
        kept.refresh_tokens = list(self.refresh_tokens.values())
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent)  # mode 600
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(kept))
        Path(name).replace(self._path)

    # --- users ---

    def by_email(self, email: str) -> User | None:
        """Return the account with this address."""
        wanted = email.lower()
        return next((user for user in self.users.values() if user.email == wanted), None)

    def add_user(self, user: User) -> None:
        """Keep a new account."""
        self.users[user.id] = user
        self.save()

    def delete_user(self, user: User) -> None:
        """Forget an account, its sessions and its refresh tokens."""
        del self.users[user.id]
        self.end_sessions(user.id)

    # --- sessions ---

    def open_session(self, user: User, method: str, now: float, stamp: str) -> tuple[Session, str]:
        """Sign a user in; return the session and its first refresh token."""
        session = Session(id=str(uuid4()), user_id=user.id, method=method, at=int(now))
        self.sessions[session.id] = session
        user.last_sign_in_at = stamp
        return session, self.issue_refresh_token(session, None)

    def issue_refresh_token(self, session: Session, parent: str | None) -> str:
        """Make a refresh token, in the place of `parent`."""
        token = secrets.token_urlsafe(9)
        self.refresh_tokens[token] = RefreshToken(token=token, session_id=session.id, parent=parent)
        self.save()
        return token

    def child_of(self, token: str) -> RefreshToken | None:
        """Return the unused token that this one was exchanged for."""
        return next(
            (each for each in self.refresh_tokens.values() if each.parent == token and each.used_at is None),
            None,
        )

    def end_sessions(self, user_id: str, *, only: str | None = None, but: str | None = None) -> None:
        """End a user's sessions: all, `only` one, or all `but` one."""
        ended = {
            each.id
            for each in self.sessions.values()
            if each.user_id == user_id and each.id != but and only in (None, each.id)
        }
        self.sessions = {id_: each for id_, each in self.sessions.items() if id_ not in ended}
        self.refresh_tokens = {
            token: each for token, each in self.refresh_tokens.items() if each.session_id not in ended
        }
        self.save()


def hash_password(password: str) -> str:
    """Return a salted hash of the password."""
    salt = secrets.token_bytes(16)
    return salt.hex() + ":" + hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()


def password_fits(password: str, kept: str) -> bool:
    """Say whether the password is the one that was hashed."""
    salt, _, digest = kept.partition(":")
    if not digest:
        return False
    given = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **_SCRYPT).hex()
    return hmac.compare_digest(given, digest)


def user_id(text: str) -> str | None:
    """Return a UUID in canonical form; None if it is none."""
    try:
        return str(UUID(text))
    except ValueError:
        return None
