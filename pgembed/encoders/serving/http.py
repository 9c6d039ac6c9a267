"""HTTP/1.1 for JSON documents on asyncio: a coroutine for each connection, a deadline for each wait.

llhttp, the parser of Node.js, parses and checks the heads of requests, through the package httptools. Bodies
need a Content-Length. The requests of one connection are answered one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Literal

import httptools

from pgembed.encoders.serving.limits import Arriving, Limits, RefusalError

HEAD = 64 * 1024  # bytes
_FIELDS = 256
_PIECE = 64 * 1024  # bytes of a body in one read
_LINGER = 2.0  # seconds for which a refused client may keep sending
_ONCE = ("authorization", "host")


class Head:
    """A request without its body; names of headers are in lower case.

    :param content: all of it, with the blank line.
    :param most: bytes that the body may have.
    :raises RefusalError: it is not one, or announces a body that is refused.
    """

    def __init__(self, content: bytes, most: int) -> None:
        self.path = ""
        self.headers: dict[str, str] = {}
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parse(content, most)
        finally:
            del self._parser  # which refers to this
        given = self.headers.get("content-length")
        if "transfer-encoding" in self.headers or (self.method == "POST" and given is None):
            raise RefusalError(411, "a body needs the header Content-Length")
        self.length = int(given or 0)
        if self.length > most:
            raise RefusalError(413, f"a body of {self.length} bytes; at most {most} are allowed")

    def _parse(self, content: bytes, most: int) -> None:
        try:
            # An offer to upgrade may be ignored: Java and curl offer HTTP/2 in this way.
            with suppress(httptools.HttpParserUpgrade):
                self._parser.feed_data(content)
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, RefusalError):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError as error:
            if "Content-Length overflow" in str(error):
                raise RefusalError(413, f"a body of too many bytes; at most {most} are allowed") from None
            raise RefusalError(400, f"not an HTTP/1.1 request: {error}") from None
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise RefusalError(400, "not an HTTP/1.1 request: no version")

    # --- called by the parser -----------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """Take the path, without the host that clients of proxies send, and without the query."""
        path = url.decode("latin-1").partition("?")[0]
        self.path = "/" + path.split("/", 3)[-1] if "://" in path else path

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; of several with one name the last counts, where that is harmless."""
        key = name.decode("latin-1").lower()
        if key in _ONCE and key in self.headers:
            raise RefusalError(400, f"two headers {name.decode('latin-1')}")
        if len(self.headers) == _FIELDS:
            raise RefusalError(431, f"more than {_FIELDS} headers")
        self.headers[key] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """Take what the parser has found."""
        self.method = self._parser.get_method().decode()
        self.keep_alive = self._parser.should_keep_alive()


class Connection:
    """One client.

    :ivar since: when its present state began.
    :ivar state: what the client is doing: nothing, sending a request, waiting for the answer, or taking it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits, arriving: Arriving
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._arriving = arriving
        self._loop = asyncio.get_running_loop()
        self._deadline = asyncio.timeout(None)
        self._expected = ("headers", limits.header_seconds)
        self._refusal: RefusalError | None = None
        self._head: Head | None = None
        self.since = time.monotonic()
        self.state: Literal["idle", "sending", "waiting", "taking"] = "idle"
        writer.transport.set_write_buffer_limits(high=0)  # sent is what the kernel has

    @property
    def open(self) -> bool:
        """Whether the client is still there, as far as can be known."""
        return not self._writer.transport.is_closing()

    def abort(self) -> None:
        """Close at once, even if something has not been sent."""
        self._writer.transport.abort()

    def give_way(self, refusal: RefusalError) -> None:
        """Refuse the request that is arriving, or close if there is none; answers are sent all the same."""
        if self.state == "idle":
            self.abort()
        elif self.state == "sending" and not self._deadline.expired():
            self._refusal = refusal
            self._deadline.reschedule(self._loop.time())

    # --- requests -----------------------------------------------------------------------------------

    async def request(self, admit: Callable[[Head], None]) -> tuple[Head, bytearray] | None:
        """The next request, or ``None`` when the client has left or has been idle for too long.

        :param admit: called with the head, before the body is read; it may refuse.
        :raises RefusalError: the request is refused, and the connection cannot be used any more.
        """
        self.state, self._head, self._refusal = "idle", None, None
        try:
            async with asyncio.timeout(self._limits.idle) as self._deadline:
                begin = await self._reader.readexactly(1)
                self._expect("headers", self._limits.header_seconds)
                self.state, self.since = "sending", time.monotonic()
                self._head = head = Head(begin + await self._blank_line(begin), self._limits.body)
                admit(head)
                self._expect("body", self._limits.body_seconds)
                body = await self._body(head)
        except asyncio.IncompleteReadError:
            return None
        except TimeoutError:
            if self.state == "idle":
                return None
            what, seconds = self._expected
            late = f"the {what} did not arrive whole within {seconds:g} seconds"
            raise self._refusal or RefusalError(408, late) from None
        self.state = "waiting"
        return head, body

    def _expect(self, what: str, seconds: float) -> None:
        """Set the deadline of the next part of a request."""
        self._expected = (what, seconds)
        self._deadline.reschedule(self._loop.time() + seconds)

    async def _blank_line(self, begin: bytes) -> bytes:
        """What there is up to the blank line that ends a head."""
        if not (begin.isalpha() or begin in b"\r\n"):
            raise RefusalError(400, "not an HTTP/1.1 request")
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise RefusalError(431, f"more than {HEAD} bytes of headers") from None

    async def _body(self, head: Head) -> bytearray:
        if head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        try:
            while len(body) < head.length:
                piece = await self._reader.read(min(_PIECE, head.length - len(body)))
                if not piece:
                    raise asyncio.IncompleteReadError(bytes(piece), head.length)
                body += piece
                self._arriving.add(self, len(piece))
        except BaseException:
            body.clear()  # errors keep it alive, and the client may still have to be answered
            raise
        finally:
            self._arriving.drop(self)
        return body

    # --- answers ------------------------------------------------------------------------------------

    async def answer(self, body: bytes, *, last: bool = False) -> None:
        """Answer the current request with a JSON document.

        :param last: whether the connection is closed then.
        :raises ConnectionError: the client did not read it.
        """
        await self._send(200, body, "", last=last)

    async def refuse(self, refusal: RefusalError, *, last: bool = False) -> None:
        """Answer the current request with an error."""
        await self._send(refusal.status, refusal.body(), refusal.headers, last=last)

    async def dismiss(self, refusal: RefusalError) -> None:
        """Refuse, and close when the client has read that: unread data would reset the connection."""
        await self.refuse(refusal, last=True)
        self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(_PIECE):
                    pass

    async def _send(self, status: int, body: bytes, headers: str, *, last: bool) -> None:
        self.state, self.since = "taking", time.monotonic()
        kept = "close" if last or self._head is None or not self._head.keep_alive else "keep-alive"
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {kept}\r\n{headers}\r\n"
        )
        without_body = self._head is not None and self._head.method == "HEAD"
        self._writer.write(head.encode() + (b"" if without_body else body))
        if self._writer.transport.get_write_buffer_size():
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    await self._writer.drain()
            except TimeoutError:
                self.abort()
                raise ConnectionAbortedError("the client does not read its answer") from None
        self.since = time.monotonic()
