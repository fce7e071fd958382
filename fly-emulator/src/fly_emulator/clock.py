"""The time, as the API and the logs write it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Milliseconds since 1970, as in the API's events."""
    return int(time.time() * 1000)


def timestamp() -> str:
    """Date and time as the API writes them, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
