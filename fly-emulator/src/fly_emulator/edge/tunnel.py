"""Bytes both ways between a client and a machine: WebSockets after their 101, and plain TCP."""

from __future__ import annotations

import asyncio

from fly_emulator.edge.frames import FrameTracker, close_frame
from fly_emulator.edge.idle import IdleTimer
from fly_emulator.edge.splice import Sink, Wire


class Tunnel:
    """Two wires spliced together. Ends of a direction pass on; a break of one side breaks the other."""

    def __init__(self, client: Wire, link: Wire, *, websocket: bool, idle_timeout: float | None) -> None:
        self._client = client
        self._link = link
        self._frames = FrameTracker() if websocket else None
        self._close: bytes | None = None
        """A close frame that waits for the end of the server's frame."""
        self._muted = False
        """Whether our close frame was sent: nothing of the server's may follow it."""
        self._idle = IdleTimer(idle_timeout, self.abort)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Completed when it has ended."""

    async def run(self) -> None:
        """Pass bytes until both sides are done. Both wires are closed afterwards."""
        client, link = self._client, self._link
        for wire in (client, link):
            wire.keep_half_open = True
        client.feed_from(link)
        link.feed_from(client)
        try:
            self._join(link, client, self._to_client if self._frames is not None else self._pass_down)
            self._join(client, link, self._pass_up)
            await self.done
        finally:
            self._idle.stop()
            client.feed_from(None)
            link.feed_from(None)
            self._settle()

    def send_close(self, code: int) -> bool:
        """Send a WebSocket's client a close frame at the next end of a frame; says whether it is one."""
        if self._frames is None:
            return False
        if not self._muted and not self._frames.closed and self._close is None:
            self._close = close_frame(code)
            self._try_close()
        return True

    def abort(self) -> None:
        """Break both sides."""
        self._client.abort()
        self._link.abort()
        self._finish()

    # --- bytes ---

    def _to_client(self, data: bytes) -> None:
        """Pass a WebSocket's bytes, and our close frame where it fits."""
        self._idle.touch()
        assert self._frames is not None
        if self._muted:
            return
        if self._close is None:
            self._frames.feed(data)
            self._client.write(data)
            return
        taken = self._frames.feed(data, one=True)
        self._client.write(data[:taken])
        self._try_close()

    def _try_close(self) -> None:
        assert self._frames is not None
        if self._close is not None and self._frames.at_boundary:
            if not self._frames.closed:
                self._client.write(self._close)
            self._close, self._muted = None, True

    def _pass_down(self, data: bytes) -> None:
        self._idle.touch()
        self._client.write(data)

    def _pass_up(self, data: bytes) -> None:
        self._idle.touch()
        self._link.write(data)

    # --- ends ---

    def _join(self, wire: Wire, other: Wire, sink: Sink) -> None:
        wire.on_end = lambda: self._ended(wire, other)
        wire.splice(sink)
        wire.lost.add_done_callback(lambda _lost: self._ended(wire, other))
        if wire.eof:
            self._ended(wire, other)

    def _ended(self, wire: Wire, other: Wire) -> None:
        """Pass an end on: of a direction as such, of a connection as a close or a reset.

        A WebSocket whose server has hung up is over, whatever its client still sends.
        """
        hung_up = wire is self._link and self._frames is not None
        if hung_up or wire.lost.done() or other.lost.done() or other.eof:
            self._finish()
        else:
            other.end()
            if not other.transport.can_write_eof():
                self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _settle(self) -> None:
        broken = any(
            wire.lost.done() and wire.lost.result() is not None for wire in (self._client, self._link)
        )
        for wire in (self._client, self._link):
            if broken:
                wire.abort()
            else:
                wire.close()
