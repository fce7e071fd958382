"""What people do: sign up, sign in, refresh, ask who they are, sign out.

Follows `internal/api/{signup,token,token_refresh,user,logout}.go` and `internal/tokens/service.go` of
supabase/auth, with addresses confirmed at once ("Confirm email" off).
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar
from uuid import uuid4

import jwt
import msgspec
from aiohttp import web

from supabase_emulator.errors import AuthError, bad_json
from supabase_emulator.gateway import bearer
from supabase_emulator.project import PROJECT, Project
from supabase_emulator.store import RefreshToken, Session, User, hash_password, password_fits

T = TypeVar("T")

MIN_PASSWORD: Final = 6
MAX_PASSWORD: Final = 72
_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")


class _Credentials(msgspec.Struct):
    email: str = ""
    password: str = ""
    phone: str = ""
    data: dict[str, Any] = {}


class _Refresh(msgspec.Struct):
    refresh_token: str = ""


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


async def decode(request: web.Request, kind: type[T]) -> T:
    """Read a body. Raises AuthError."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_json(str(error)) from None


def check_email(email: str) -> str:
    """Return the address as it is kept. Raises AuthError."""
    if len(email) > 255 or not _EMAIL.fullmatch(email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    return email.lower()


def check_password(password: str) -> str:
    """Return the password's hash. Raises AuthError."""
    if len(password) < MIN_PASSWORD:
        text = f"Password should be at least {MIN_PASSWORD} characters."
        raise AuthError(422, "weak_password", text, weak_password={"reasons": ["length"]})
    if len(password.encode()) > MAX_PASSWORD:
        raise AuthError(400, "validation_failed", "Password cannot be longer than 72 characters")
    return hash_password(password)


def document(user: User) -> dict[str, Any]:
    """Return a user as the API shows one."""
    confirmed = user.created_at if user.email else None
    return {
        "id": user.id,
        "aud": "authenticated",
        "role": user.role,
        "email": user.email,
        "email_confirmed_at": confirmed,
        "phone": "",
        "confirmed_at": confirmed,
        "last_sign_in_at": user.last_sign_in_at,
        "app_metadata": user.app_metadata,
        "user_metadata": user.user_metadata,
        "identities": [],
        "created_at": user.created_at,
        "updated_at": user.last_sign_in_at or user.created_at,
        "is_anonymous": user.is_anonymous,
    }


def _signed_in(project: Project, user: User, session: Session, refresh_token: str) -> web.Response:
    return reply(
        {
            "access_token": project.access_token(user, session),
            "token_type": "bearer",
            "expires_in": project.token_seconds,
            "expires_at": int(project.clock()) + project.token_seconds,
            "refresh_token": refresh_token,
            "user": document(user),
        }
    )


def _sign_in(project: Project, user: User, method: str) -> web.Response:
    session, token = project.store.open_session(user, method, project.clock(), project.clock.stamp())
    return _signed_in(project, user, session, token)


async def sign_up(request: web.Request) -> web.Response:
    """Make an account and sign in; without address and number: an anonymous one, where that is allowed."""
    project = request.app[PROJECT]
    asked = await decode(request, _Credentials)
    if asked.phone:
        raise AuthError(400, "phone_provider_disabled", "Phone signups are disabled")
    if not asked.email:
        return _sign_up_anonymously(project, asked)
    email = check_email(asked.email)
    hashed = check_password(asked.password)
    if project.store.by_email(email) is not None:
        raise AuthError(422, "user_already_exists", "User already registered")
    user = User(
        id=str(uuid4()),
        created_at=project.clock.stamp(),
        email=email,
        password=hashed,
        user_metadata=asked.data,
        app_metadata={"provider": "email", "providers": ["email"]},
    )
    project.store.add_user(user)
    return _sign_in(project, user, "password")


def _sign_up_anonymously(project: Project, asked: _Credentials) -> web.Response:
    if not project.settings.anonymous:
        raise AuthError(422, "anonymous_provider_disabled", "Anonymous sign-ins are disabled")
    user = User(
        id=str(uuid4()), created_at=project.clock.stamp(), is_anonymous=True, user_metadata=asked.data
    )
    project.store.add_user(user)
    return _sign_in(project, user, "anonymous")


async def token(request: web.Request) -> web.Response:
    """Give tokens for a password or for a refresh token."""
    project = request.app[PROJECT]
    match request.query.get("grant_type"):
        case "password":
            return _by_password(project, await decode(request, _Credentials))
        case "refresh_token":
            return _by_refresh_token(project, (await decode(request, _Refresh)).refresh_token)
        case _:
            raise AuthError(400, "invalid_credentials", "unsupported_grant_type")


def _by_password(project: Project, asked: _Credentials) -> web.Response:
    user = project.store.by_email(asked.email) if asked.email else None
    if user is None or not password_fits(asked.password, user.password):
        raise AuthError(400, "invalid_credentials", "Invalid login credentials")
    return _sign_in(project, user, "password")


def _by_refresh_token(project: Project, given: str) -> web.Response:
    """Exchange a refresh token; a used one works on within the reuse interval, else its session ends."""
    if not given:
        raise AuthError(400, "validation_failed", "refresh_token required")
    store = project.store
    known = store.refresh_tokens.get(given)
    session = None if known is None else store.sessions.get(known.session_id)
    user = None if session is None else store.users.get(session.user_id)
    if known is None or session is None or user is None:
        raise AuthError(400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found")
    if known.used_at is None:
        known.used_at = project.clock()
        return _signed_in(project, user, session, store.issue_refresh_token(session, given))
    return _signed_in(project, user, session, _reused(project, user, session, known))


def _reused(project: Project, user: User, session: Session, known: RefreshToken) -> str:
    """Return the token a used one stands for.

    The parent of the active token is always taken: its answer may have been lost on the way.
    """
    store = project.store
    active = store.child_of(known.token)
    if active is not None:
        return active.token
    assert known.used_at is not None
    if project.clock() - known.used_at <= project.settings.reuse_seconds:
        return store.issue_refresh_token(session, known.token)
    store.end_sessions(user.id, only=session.id)
    raise AuthError(400, "refresh_token_already_used", "Invalid Refresh Token: Already Used")


def signed_in_user(request: web.Request) -> tuple[User, str]:
    """Return whose token the request has, and its session's id. Raises AuthError."""
    project = request.app[PROJECT]
    given = bearer(request)
    if not given:
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    try:
        claims = project.keys.verify(given, project.issuer)
    except (jwt.PyJWTError, ValueError):
        raise AuthError(
            403, "bad_jwt", "invalid JWT: unable to parse or verify signature, token is malformed"
        ) from None
    if claims["exp"] <= project.clock():
        text = "invalid JWT: unable to parse or verify signature, token has invalid claims: token is expired"
        raise AuthError(403, "bad_jwt", text)
    user = project.store.users.get(claims["sub"])
    if user is None:
        raise AuthError(403, "user_not_found", "User from sub claim in JWT does not exist")
    if claims["session_id"] not in project.store.sessions:
        text = "Session from session_id claim in JWT does not exist"
        raise AuthError(403, "session_not_found", text)
    return user, claims["session_id"]


async def who(request: web.Request) -> web.Response:
    """Answer with the token's user."""
    user, _ = signed_in_user(request)
    return reply(document(user))


async def sign_out(request: web.Request) -> web.Response:
    """End sessions: all (default), this one, or the others. Access tokens stay good until they end."""
    user, session_id = signed_in_user(request)
    store = request.app[PROJECT].store
    match request.query.get("scope", "global"):
        case "global":
            store.end_sessions(user.id)
        case "local":
            store.end_sessions(user.id, only=session_id)
        case "others":
            store.end_sessions(user.id, but=session_id)
        case other:
            raise AuthError(400, "validation_failed", f'Unsupported logout scope "{other[:40]}"')
    return web.Response(status=204)


async def jwks(request: web.Request) -> web.Response:
    """Answer with the public keys; cacheable for ten minutes, as Supabase's are."""
    headers = {"Cache-Control": "public, max-age=600"}
    return reply(request.app[PROJECT].keys.jwks(), headers=headers)


async def health(_request: web.Request) -> web.Response:
    """Say that it answers, and what it is."""
    text = "A stand-in for Supabase Auth, for development and tests"
    return reply({"version": "emulated", "name": "supabase-emulator", "description": text})


ROUTES = (
    web.get("/auth/v1/.well-known/jwks.json", jwks),
    web.get("/auth/v1/health", health),
    web.post("/auth/v1/signup", sign_up),
    web.post("/auth/v1/token", token),
    web.get("/auth/v1/user", who),
    web.post("/auth/v1/logout", sign_out),
)
