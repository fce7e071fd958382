"""Bodies on their way: a request's, kept while it may have to be sent again, and a response's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fly_emulator.edge.http1 import Framing, Malformed, UntilClose
from fly_emulator.edge.splice import Wire


class RequestBody:
    """Streams from the client to whichever machine is attached; the first `limit` bytes are kept."""

    def __init__(self, client: Wire, framing: Framing, limit: int) -> None:
        self._client = client
        self._framing = framing
        self._limit = limit
        self._kept = bytearray()
        self._lost = False
        """Whether some of it is not kept any more."""
        self._link: Wire | None = None

    @property
    def complete(self) -> bool:
        """Whether the client has sent all of it."""
        return self._framing.complete

    @property
    def replayable(self) -> bool:
        """Whether another machine can be sent all of it."""
        return not self._lost and len(self._kept) <= self._limit

    def start(self) -> None:
        """Take the client's bytes from here on."""
        if not self.complete:
            self._client.splice(self._take)

    def attach(self, link: Wire) -> None:
        """Send what was kept, and from now on what comes."""
        self._link = link
        link.write(bytes(self._kept))
        self._forget()
        self._client.release()
        if not self.complete:
            link.feed_from(self._client)

    def detach(self) -> None:
        """Keep what comes for the next machine."""
        link, self._link = self._link, None
        if link is not None:
            link.feed_from(None)
        if not self.complete and len(self._kept) > self._limit:
            self._client.hold()

    def stop(self) -> None:
        """Leave the client's bytes alone."""
        self._client.splice(None)
        self._client.release()

    def _take(self, data: bytes) -> None:
        try:
            taken = self._framing.feed(data)
        except Malformed:
            self._client.abort()
            return
        piece = data[:taken]
        if not self._lost:
            self._kept += piece
        if self._link is not None:
            self._link.write(piece)
            self._forget()
        elif len(self._kept) > self._limit:
            self._client.hold()
        if self.complete:
            self._client.splice(None)
            self._client.unread(data[taken:])
            if self._link is not None:
                self._link.feed_from(None)

    def _forget(self) -> None:
        """Let go of what is too large to keep, once it is on its way."""
        if len(self._kept) > self._limit:
            self._kept = bytearray()
            self._lost = True


async def relay(link: Wire, client: Wire, framing: Framing, touch: Callable[[], None]) -> bool:
    """Pass a response's body on as it comes; says whether all of it came."""
    if framing.complete:
        return True
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def finish(whole: bool) -> None:  # noqa: FBT001 - the future's value
        if not done.done():
            done.set_result(whole)

    def take(data: bytes) -> None:
        touch()
        try:
            taken = framing.feed(data)
        except Malformed:
            finish(False)
            return
        client.write(data if taken == len(data) else data[:taken])
        if framing.complete:
            link.splice(None)
            link.unread(data[taken:])
            finish(True)

    def ended() -> None:
        orderly = not link.lost.done() or link.lost.result() is None
        finish(isinstance(framing, UntilClose) and orderly and not client.lost.done())

    client.feed_from(link)
    link.on_end = ended
    try:
        link.splice(take)
        if link.eof:
            ended()
        return await done
    finally:
        link.on_end = None
        link.splice(None)
        client.feed_from(None)
