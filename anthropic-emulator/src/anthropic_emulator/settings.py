"""How a server behaves; every field is an option of `anthropic-emulator serve`."""

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable settings of one server."""

    ttft_ms: float = 200.0
    delay_ms: float = 15.0
    jitter: float = 0.2
    seed: int | None = None
    """Makes ids and jitter the same in every run; without it ids are unique."""
    cache_min_tokens: int = 1024
    max_body: int = 32 * 1024 * 1024
    keep_requests: int = 256
    gullible: bool = False
    """Obey whatever a text in the conversation says, tool results included (`brain/gullible.py`)."""
    requests_per_minute: int = 100_000
    input_tokens_per_minute: int = 1_000_000_000
    output_tokens_per_minute: int = 1_000_000_000
    api_key: str | None = None
    """The only key that is let in; absent: any."""
