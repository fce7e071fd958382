"""The token of a run: whoever can read the state folder may use the API."""

from __future__ import annotations

from pathlib import Path
from secrets import token_urlsafe


def new_token(state: Path) -> str:
    """Make this run's token, and leave it in the state folder for this user's other programs."""
    token, path = token_urlsafe(16), state / "token"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(token, encoding="utf-8")
    return token
