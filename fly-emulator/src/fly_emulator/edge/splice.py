"""One TCP connection: read by a coroutine where something is decided, spliced to another where bytes pass.

Memory is bounded on both ways: what a coroutine has not read yet stops the reading at `HIGH_WATER`, and a
wire that cannot be written to stops the one its bytes come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, cast

HIGH_WATER: Final = 128 * 1024
"""Bytes received and not yet taken before reading stops."""

_BEFORE_CUT: Final = 0.02
"""Seconds between the last bytes and the break of a fault, so that they leave."""

Sink: TypeAlias = Callable[[bytes], None]


class Wire(asyncio.Protocol):
    """A connection to a client or to a machine."""

    transport: asyncio.Transport

    def __init__(self, on_made: Callable[[Wire], None] | None = None) -> None:
        self._on_made = on_made
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._drain: asyncio.Future[None] | None = None
        self._paused = False
        self._full = False
        self._held = False
        self.blocked = False
        """Whether what was written is waiting for the peer to read."""
        self.eof = False
        self.lost: asyncio.Future[Exception | None] = self._loop.create_future()
        self.source: Wire | None = None
        """The wire whose bytes are written here; it rests while this one is blocked."""
        self.on_end: Callable[[], None] | None = None
        """Told once when the peer sends no more, or is gone."""
        self.keep_half_open = False
        """Whether writing goes on after the peer has ended its direction."""
        self.cut_after: int | None = None
        """A fault: the connection breaks after so many more bytes."""
        self.on_cut: Callable[[], None] | None = None

    # --- what the transport tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, or keep them for `receive`."""
        if self._sink is not None:
            self._sink(data)
            return
        self._unread += data
        self._wake()
        self._mind()

    def eof_received(self) -> bool:
        """Note that the peer sends no more."""
        self._ended()
        return self.keep_half_open and self.transport.get_extra_info("ssl_object") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if not self.lost.done():
            self.lost.set_result(exc)
        self.resume_writing()
        self._ended()

    def pause_writing(self) -> None:
        """Stop reading what would be written here."""
        self.blocked = True
        if self.source is not None:
            self.source.hold()

    def resume_writing(self) -> None:
        """Read on."""
        self.blocked = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        if self.source is not None:
            self.source.release()

    # --- reading ---

    async def receive(self) -> bytes:
        """Return what has come; b"" when the peer sends no more. For one caller at a time."""
        while not self._unread and not self.eof:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = bytes(self._unread)
        self._unread.clear()
        self._mind()
        return data

    def unread(self, data: bytes) -> None:
        """Give bytes back that belong to what comes next."""
        if data:
            self._unread[:0] = data
            self._mind()

    async def receive_head(self, limit: int) -> bytes | None:
        """Return a head without its empty line; None when the peer ends before one is complete.

        Raises ValueError when it grows past `limit`. Empty lines before it are skipped (RFC 9112, 2.2).
        """
        head = bytearray()
        while True:
            data = await self.receive()
            if not data:
                self.unread(bytes(head))
                return None
            head += data
            while head.startswith(b"\r\n"):
                del head[:2]
            end = head.find(b"\r\n\r\n")
            if end > limit or (end < 0 and len(head) > limit):
                raise ValueError("a head without end")
            if end >= 0:
                self.unread(bytes(head[end + 4 :]))
                return bytes(head[:end])

    def splice(self, sink: Sink | None) -> None:
        """Hand all that comes, and what has come, to `sink`; None: keep it for `receive` again."""
        self._sink = sink
        if sink is not None and self._unread:
            data = bytes(self._unread)
            self._unread.clear()
            self._mind()
            sink(data)

    @property
    def pending(self) -> bool:
        """Whether bytes have come that nobody took."""
        return bool(self._unread)

    def hold(self) -> None:
        """Stop reading until `release`."""
        self._held = True
        self._mind()

    def release(self) -> None:
        """Read on."""
        self._held = False
        self._mind()

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Send bytes; a wire that is gone swallows them."""
        if self.lost.done() or not data or self.transport.is_closing():
            return
        if self.cut_after is not None:
            self._cut(data)
        else:
            self.transport.write(data)

    async def drained(self) -> None:
        """Wait until the peer has read most of what was written. For one caller at a time."""
        if self.blocked:
            self._drain = self._loop.create_future()
            await self._drain

    def feed_from(self, source: Wire | None) -> None:
        """Name the wire whose bytes are written here, or that there is none any more."""
        if self.source is not None:
            self.source.release()
        self.source = source
        if source is not None and self.blocked:
            source.hold()

    def end(self) -> None:
        """End our direction, as far as the transport can."""
        if not self.lost.done() and not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close after everything written has been sent."""
        if not self.lost.done():
            self.transport.close()

    def abort(self) -> None:
        """Close at once: the peer sees a reset where bytes were under way."""
        if not self.lost.done():
            self.transport.abort()

    async def linger(self, seconds: float) -> None:
        """Close so that the peer can read the last answer though it is still sending (RFC 9112, 9.6)."""
        self.splice(lambda _data: None)
        self.end()
        await asyncio.wait([self.lost], timeout=seconds)
        self.close()

    # --- inside ---

    def _cut(self, data: bytes) -> None:
        assert self.cut_after is not None
        if len(data) < self.cut_after:
            self.cut_after -= len(data)
            self.transport.write(data)
            return
        if self.cut_after:
            self.transport.write(data[: self.cut_after])
            self._loop.call_later(_BEFORE_CUT, self.transport.abort)
            if self.on_cut is not None:
                self.on_cut()
        self.cut_after = 0

    def _ended(self) -> None:
        self.eof = True
        self._wake()
        told, self.on_end = self.on_end, None
        if told is not None:
            told()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _mind(self) -> None:
        """Read or rest, as the bounds say."""
        self._full = self._sink is None and len(self._unread) >= HIGH_WATER
        wanted = self._full or self._held
        if wanted == self._paused or self.lost.done() or self.transport.is_closing():
            return
        self._paused = wanted
        if wanted:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
