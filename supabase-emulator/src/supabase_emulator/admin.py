"""What a backend with the service key does: make, list, read and delete users.

Follows `internal/api/admin.go` and `internal/api/auth.go` (requireAdmin) of supabase/auth.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
from aiohttp import web

from supabase_emulator.errors import AuthError
from supabase_emulator.gateway import bearer, role
from supabase_emulator.project import PROJECT
from supabase_emulator.sessions import check_email, check_password, decode, document, reply, signed_in_user
from supabase_emulator.store import User, user_id

_PER_PAGE = 50
_MOST_PER_PAGE = 1000


class _NewUser(msgspec.Struct):
    id: str = ""
    email: str = ""
    password: str | None = None
    role: str = ""
    email_confirm: bool = False
    user_metadata: dict[str, Any] = {}
    app_metadata: dict[str, Any] = {}


class _Delete(msgspec.Struct):
    should_soft_delete: bool = False


def _require_admin(request: web.Request) -> None:
    came_as = role(request)
    if came_as == "service_role":
        return
    if not came_as and not bearer(request):
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    if not came_as:
        signed_in_user(request)  # a bad token is told first
    raise AuthError(403, "not_admin", "User not allowed")


async def create(request: web.Request) -> web.Response:
    """Make an account."""
    _require_admin(request)
    project = request.app[PROJECT]
    asked = await decode(request, _NewUser)
    if not asked.email:
        text = "Cannot create a user without either an email or phone"
        raise AuthError(400, "validation_failed", text)
    email = check_email(asked.email)
    if project.store.by_email(email) is not None:
        text = "A user with this email address has already been registered"
        raise AuthError(422, "email_exists", text)
    new_id = user_id(asked.id) if asked.id else str(uuid4())
    if new_id is None or new_id in project.store.users:
        raise AuthError(400, "validation_failed", "ID must conform to the uuid v4 format")
    user = User(
        id=new_id,
        created_at=project.clock.stamp(),
        email=email,
        password=check_password(asked.password) if asked.password else "",
        role=asked.role or "authenticated",
        user_metadata=asked.user_metadata,
        app_metadata={"provider": "email", "providers": ["email"], **asked.app_metadata},
    )
    project.store.add_user(user)
    return reply(document(user))


async def list_all(request: web.Request) -> web.Response:
    """List accounts, newest first, a page at a time."""
    _require_admin(request)
    store = request.app[PROJECT].store
    page = _count(request, "page", 1, 1_000_000)
    size = _count(request, "per_page", _PER_PAGE, _MOST_PER_PAGE)
    users = sorted(store.users.values(), key=lambda each: each.created_at, reverse=True)
    shown = users[(page - 1) * size : page * size]
    headers = {"x-total-count": str(len(users))}
    return reply({"users": [document(each) for each in shown], "aud": "authenticated"}, headers=headers)


def _count(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise AuthError(400, "validation_failed", f"Bad Pagination Parameters: {name}")
    return int(text)


def _asked_for(request: web.Request) -> User:
    _require_admin(request)
    wanted = user_id(request.match_info["id"])
    if wanted is None:
        raise AuthError(404, "validation_failed", "user_id must be an UUID")
    user = request.app[PROJECT].store.users.get(wanted)
    if user is None:
        raise AuthError(404, "user_not_found", "User not found")
    return user


async def read(request: web.Request) -> web.Response:
    """Show an account."""
    return reply(document(_asked_for(request)))


async def delete(request: web.Request) -> web.Response:
    """Delete an account with its sessions; access tokens that are out stay good until they end."""
    user = _asked_for(request)
    asked = await decode(request, _Delete)
    if asked.should_soft_delete:
        raise AuthError(400, "validation_failed", "the emulator deletes for good only")
    request.app[PROJECT].store.delete_user(user)
    return reply({})


ROUTES = (
    web.post("/auth/v1/admin/users", create),
    web.get("/auth/v1/admin/users", list_all),
    web.get("/auth/v1/admin/users/{id}", read),
    web.delete("/auth/v1/admin/users/{id}", delete),
)
