"""How a server behaves; every field is an option of `supabase-emulator serve`."""

from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Algorithm: TypeAlias = Literal["ES256", "RS256"]

MAX_TOKEN_SECONDS = 604_800
"""Supabase's own limit of an access token's life: one week."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable settings of one server."""

    state: Path | None = None
    """File that users, sessions and keys are kept in; without it all is forgotten at the end."""
    algorithm: Algorithm = "ES256"
    token_seconds: int = 3600
    """Life of an access token; Supabase's default."""
    reuse_seconds: float = 10.0
    """How long a used refresh token is taken once more; Supabase's default."""
    anonymous: bool = False
    """Whether people may sign in without an account; Supabase's default is no."""
    keep_requests: int = 256
