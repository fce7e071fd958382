"""HTTP to the Messages API: one POST, its failures by name, and the bytes of its answer.

Imported when the engine starts, not at boot: aiohttp costs more than the rest of the server together.

What an API says about a failure may quote the prompt. Of an error body only the type and the path of
the field it names are kept; with the request id the provider can tell the rest.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

import aiohttp
import msgspec

from agent_backend.engines.limits import Timeouts, TransientError
from agent_backend.errors import EngineError

Phase: TypeAlias = Literal["connect", "headers", "first_event", "idle", "total"]


class _ErrorBody(msgspec.Struct):
    type: str = ""
    message: str = ""


class _ErrorDocument(msgspec.Struct):
    error: _ErrorBody


_decode_error = msgspec.json.Decoder(_ErrorDocument).decode
_ERROR_TYPE = re.compile(r"[a-z_]{1,64}")
_FIELD_PATH = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+){0,12}): ")
_MAX_ERROR_BODY = 64 * 1024

_CODES: dict[int, str] = {
    400: "provider_rejected",
    401: "provider_auth",
    402: "provider_billing",
    403: "provider_auth",
    404: "provider_rejected",
    413: "provider_too_large",
    429: "provider_rate_limited",
    529: "provider_overloaded",
}
_TRANSIENT = frozenset({500, 502, 503, 504, 529})


class Transport:
    """A pool of connections to one API. The key is sent in a header and kept nowhere else."""

    def __init__(self, url: str, headers: Mapping[str, str], timeouts: Timeouts) -> None:
        self._url = url
        self.timeouts = timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=55.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            # A compressed stream would arrive in the compressor's blocks, not token by token.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=timeouts.connect, sock_connect=timeouts.connect, sock_read=None
            ),
        )

    async def post(self, body: bytes, total_at: float) -> Arrivals:
        """Send `body`; return the answer's arrivals once its status is 200.

        `total_at` is the loop time at which the whole call ends. Raises TransientError if the call may be
        made again, else EngineError.
        """
        if self._session.closed:
            raise EngineError("engine_closed", "the engine is closed", retryable=True)
        loop = asyncio.get_running_loop()
        headers_at = loop.time() + self.timeouts.headers
        phase: Phase = "total" if total_at < headers_at else "headers"
        try:
            async with asyncio.timeout_at(min(headers_at, total_at)):
                # A redirect would carry the key to another host.
                response = await self._session.post(self._url, data=body, allow_redirects=False)
                if response.status != 200:
                    raise await _refusal(response)
        except aiohttp.ConnectionTimeoutError:
            raise TransientError("provider_connect_timeout", "no connection in time", unbilled=True) from None
        except TimeoutError:
            raise _timed_out(phase, started=False) from None
        except (aiohttp.ClientError, OSError) as error:
            # Without a connection nothing was sent; one that broke later may have carried the request.
            unbilled = isinstance(error, aiohttp.ClientConnectorError)
            raise TransientError("provider_unreachable", type(error).__name__, unbilled=unbilled) from None
        return Arrivals(response, self.timeouts, total_at)

    async def aclose(self) -> None:
        """Close every connection; reads under way fail."""
        await self._session.close()


class Arrivals:
    """The bytes of one answer, as they arrive.

    One timer watches the whole stream; a read only notes when it began. (A timeout per read costs more
    than parsing what it brings.) Time the caller takes between reads is not held against the provider.
    """

    __slots__ = (
        "_allowed",
        "_content",
        "_idle",
        "_loop",
        "_phase",
        "_response",
        "_timer",
        "_total_at",
        "_waiting",
    )

    def __init__(self, response: aiohttp.ClientResponse, timeouts: Timeouts, total_at: float) -> None:
        self._response = response
        self._content = response.content
        self._total_at = total_at
        self._loop = asyncio.get_running_loop()
        self._phase: Phase = "first_event"
        self._allowed = timeouts.first_event
        self._idle = timeouts.idle
        self._waiting: float | None = None
        self._timer = self._loop.call_at(self._due(), self._check)

    @property
    def request_id(self) -> str | None:
        """The provider's name for this call."""
        return self._response.headers.get("request-id")

    def event_seen(self) -> None:
        """From the first event on the idle limit holds."""
        if self._phase == "first_event":
            self._phase = "idle"
            self._allowed = self._idle
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due(), self._check)

    async def read(self, *, started: bool) -> bytes:
        """Return what has arrived, at least one byte; empty at the end.

        Raises TransientError while the answer has not `started`, else EngineError.
        """
        self._waiting = self._loop.time()
        try:
            return await self._content.readany()
        except _PhaseOver as error:
            raise _timed_out(error.phase, started=started, request_id=self.request_id) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.cut_short(started=started, how=type(error).__name__) from None
        except RuntimeError:
            # What aiohttp says of a connection that `Transport.aclose` has closed.
            raise self.cut_short(started=started, how="the connection is closed") from None
        finally:
            self._waiting = None

    def cut_short(self, *, started: bool, how: str = "the stream ended early") -> EngineError:
        """Return the error for an answer that ended before its `message_stop`."""
        code = "provider_stream_cut"
        if not started:
            return TransientError(code, how, request_id=self.request_id)
        return EngineError(code, how, retryable=True, started=True, request_id=self.request_id)

    async def drain(self) -> None:
        """Read to the end of a message that is complete, so that the connection can serve again."""
        if self._content.at_eof():
            return
        try:
            async with asyncio.timeout(1.0):
                await self._content.read()
        except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError, _PhaseOver):
            self._response.close()

    def close(self) -> None:
        """Close the stream; the connection too, unless everything has been read."""
        self._timer.cancel()
        self._response.close()

    def _due(self) -> float:
        since = self._loop.time() if self._waiting is None else self._waiting
        return min(since + self._allowed, self._total_at)

    def _check(self) -> None:
        now = self._loop.time()
        if now >= self._total_at:
            self._content.set_exception(_PhaseOver("total"))
        elif self._waiting is not None and now >= self._waiting + self._allowed:
            self._content.set_exception(_PhaseOver(self._phase))
        else:
            self._timer = self._loop.call_at(self._due(), self._check)


class _PhaseOver(Exception):
    """Set on the stream by the timer."""

    def __init__(self, phase: Phase) -> None:
        super().__init__(phase)
        self.phase: Phase = phase


def _timed_out(phase: Phase, *, started: bool, request_id: str | None = None) -> EngineError:
    """Return the error for a phase that took too long. Never retried here: the user has waited enough."""
    return EngineError(
        f"provider_{phase}_timeout",
        "the provider took too long",
        retryable=True,
        started=started,
        request_id=request_id,
    )


async def _refusal(response: aiohttp.ClientResponse) -> EngineError:
    """Read an answer that is not 200 and return its error."""
    status = response.status
    request_id = response.headers.get("request-id")
    try:
        detail = f"HTTP {status} {_describe(await _body(response.content))}".rstrip()
    finally:
        response.close()
    code = _CODES.get(status, "provider_unavailable" if status >= 500 else "provider_error")
    retry_after = _seconds(response.headers.get("retry-after"))
    # Refused before the model began. Of a 500 or 504 nobody knows how far it had come.
    unbilled = status < 500 or status == 529
    # A 429 without retry-after is a spend limit: waiting does not help (docs, "Rate limits").
    if status in _TRANSIENT or (status == 429 and retry_after is not None):
        return TransientError(
            code, detail, retry_after=retry_after, status=status, request_id=request_id, unbilled=unbilled
        )
    if status == 429:
        code = "provider_spend_limit"
    return EngineError(
        code, detail, retryable=status >= 500, status=status, request_id=request_id, unbilled=unbilled
    )


async def _body(content: aiohttp.StreamReader) -> bytes:
    parts = bytearray()
    while len(parts) < _MAX_ERROR_BODY and (part := await content.readany()):
        parts += part
    return bytes(parts)


def _describe(body: bytes) -> str:
    """Return an error body's type and, if its message begins with one, the path of the field at fault."""
    try:
        error = _decode_error(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    kind = error.type if _ERROR_TYPE.fullmatch(error.type) else ""
    path = _FIELD_PATH.match(error.message)
    return f"{kind} at {path[1]}" if path else kind


def _seconds(value: str | None) -> float | None:
    """Read `retry-after`: seconds or an HTTP date (RFC 9110, 10.2.3). None if absent or unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (then - dt.datetime.now(dt.UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
