"""The application: Supabase Auth's endpoints behind their gateway, and the control beside them."""

from __future__ import annotations

from aiohttp import web

from supabase_emulator import admin, control, sessions
from supabase_emulator.clock import Clock
from supabase_emulator.gateway import MIDDLEWARES
from supabase_emulator.project import PROJECT, Project
from supabase_emulator.settings import Settings

_MAX_BODY = 1024 * 1024


def create_app(settings: Settings | None = None, clock: Clock | None = None) -> web.Application:
    """Build the application. Set `app[PROJECT].url` once it listens: tokens name it as their issuer.

    Raises StateFileError.
    """
    app = web.Application(middlewares=MIDDLEWARES, client_max_size=_MAX_BODY)
    app[PROJECT] = Project(settings or Settings(), clock)
    app.add_routes([*sessions.ROUTES, *admin.ROUTES, *control.ROUTES])
    return app
