"""What can be set about the edge; each default says where it is from, or that Fly documents nothing."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fly_emulator.timescale import TimeScale

WakeOrder: TypeAlias = Literal["oldest", "newest", "random"]
StopOrder: TypeAlias = Literal["least_loaded", "oldest", "newest"]
RetrySent: TypeAlias = Literal["leaving", "always", "never"]


class EdgeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Knobs of the edge. Seconds are real ones, minutes go through `time_scale`."""

    region: str | None = None
    """Where the edge stands (`Fly-Region`); None: the app's primary region."""
    region_order: tuple[str, ...] = ()
    """Other regions, closest first; those not named are equally far away."""
    time_scale: TimeScale = TimeScale()
    seed: int | None = None
    """For ties between machines, request ids and the order of wakes; None: by chance."""

    wake_timeout: float = 30.0
    """How long a request waits for a machine to start and pass its checks. Not documented: Fly's logs show
    a try given up after 8 to 11 s and the load balancer trying again."""
    wake_order: WakeOrder = "oldest"
    """Which of the sleeping machines of the nearest region is woken. Not documented."""
    queue_timeout: float = 30.0
    """How long a request waits while every machine is at its hard limit. Not documented."""
    max_attempts: int = 90
    """Machines tried for one request before PR03 (superfly/docs monitoring/error-codes; logs show 40)."""
    retry_delay: float = 0.1
    """Between two attempts at the same machine, or without any candidate. Not documented."""
    retry_sent: RetrySent = "leaving"
    """Whether a request whose connection broke before any byte of the response is sent again: `leaving`
    only where the machine turns out to be going away or a pooled connection was dead. Not documented."""
    leaving_grace: float = 0.25
    """How long after such a break the machine's state may take to show that it is going away."""
    replay_bytes: int = 1024 * 1024
    """The largest request body that is kept for a replay or another attempt
    (superfly/docs networking/dynamic-request-routing: 1 MB)."""
    max_replays: int = 10
    """`fly-replay` answers to one request (superfly/docs monitoring/error-codes, PA02)."""
    pool_seconds: float = 4.0
    """How long a connection to a machine is kept for the next request under `requests`
    (superfly/docs reference/load-balancing: about 4 seconds)."""
    connect_timeout: float = 5.0
    """For a connection to a machine that runs. Not documented."""

    websocket_is_load: bool = True
    """Whether an open WebSocket counts under `requests`. Not documented."""
    autostop_minutes: float = 5.0
    """Between two passes of autostop ("every few minutes"; logs show a stop 5 1/2 minutes after a start)."""
    autostop_order: StopOrder = "least_loaded"
    """Which machine of a region is stopped. Not documented."""
    soft_cordon_seconds: float = 1.0
    """Between taking a machine out of routing and telling its WebSockets. Not documented."""
    close_code: int | None = 1001
    """Of the close frame WebSockets are sent before a stop; None: no frame. Not documented."""
    close_grace_seconds: float = 1.0
    """How long clients may take to answer the close frame before the machine is stopped. Not documented."""
