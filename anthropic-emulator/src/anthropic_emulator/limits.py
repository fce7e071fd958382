"""Rate limits by key and minute, and the `anthropic-ratelimit-*` headers.

Header names: "Rate limits" of the API reference. Cache reads do not count as input tokens.
"""

import math
from datetime import timedelta
from typing import Final

import msgspec

from anthropic_emulator.cache import InputUsage
from anthropic_emulator.clock import Clock
from anthropic_emulator.errors import ApiError
from anthropic_emulator.settings import Settings

_WINDOW: Final = 60.0


class _Window(msgspec.Struct):
    """What one key used since `start` (clock seconds)."""

    start: float
    requests: int = 0
    input: int = 0
    output: int = 0


class Limits:
    """Fixed windows of a minute; the API's own are token buckets, which no client can tell by its headers."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def clear(self) -> None:
        """Forget all use."""
        self._windows.clear()

    def _window(self, api_key: str) -> _Window:
        now = self._clock()
        window = self._windows.get(api_key)
        if window is None or now - window.start >= _WINDOW:
            window = self._windows[api_key] = _Window(start=now)
        return window

    def admit(self, api_key: str) -> None:
        """Count a request; 429 with retry-after when a limit is already used up."""
        window = self._window(api_key)
        settings = self._settings
        for what, used, allowed in (
            ("requests", window.requests, settings.requests_per_minute),
            ("input tokens", window.input, settings.input_tokens_per_minute),
            ("output tokens", window.output, settings.output_tokens_per_minute),
        ):
            if used >= allowed:
                wait = math.ceil(window.start + _WINDOW - self._clock())
                limit = f"rate limit of {allowed} {what} per minute"
                message = f"This request would exceed your organization's {limit}."
                raise ApiError(429, message, {**self.headers(api_key), "retry-after": str(wait)})
        window.requests += 1

    def spend(self, api_key: str, paid: InputUsage, output: int) -> None:
        """Count the tokens of an answered request."""
        window = self._window(api_key)
        window.input += paid.total - paid.read
        window.output += output

    def headers(self, api_key: str) -> dict[str, str]:
        """Limit, rest and time of reset for requests, input, output and all tokens."""
        window = self._window(api_key)
        rest = timedelta(seconds=window.start + _WINDOW - self._clock())
        reset = (self._clock.now() + rest).strftime("%Y-%m-%dT%H:%M:%SZ")
        settings = self._settings
        total = settings.input_tokens_per_minute + settings.output_tokens_per_minute
        found: dict[str, str] = {}
        for name, used, allowed in (
            ("requests", window.requests, settings.requests_per_minute),
            ("input-tokens", window.input, settings.input_tokens_per_minute),
            ("output-tokens", window.output, settings.output_tokens_per_minute),
            ("tokens", window.input + window.output, total),
        ):
            found[f"anthropic-ratelimit-{name}-limit"] = str(allowed)
            found[f"anthropic-ratelimit-{name}-remaining"] = str(max(0, allowed - used))
            found[f"anthropic-ratelimit-{name}-reset"] = reset
        return found
