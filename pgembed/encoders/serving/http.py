"""As much of HTTP/1.1 as a server of small JSON documents needs, on asyncio.

A connection is a parser and a transport, without a thread or a task of its own, so that thousands of them
cost little. Requests of one connection are answered one after the other.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

_HEAD = 64 * 1024  # bytes
_LINGER = 2.0  # seconds in which a client that was refused may go on sending
_ONCE = ("content-length", "authorization", "host")
_STATUSES = (200, 400, 401, 404, 405, 411, 413, 431, 500, 503)


@dataclass(frozen=True)
class Head:
    """A request without its body; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    length: int
    keep_alive: bool


class RefusalError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> bytes:
        """In the shape of OpenAI's errors."""
        return json.dumps({"error": {"message": str(self), "type": self.kind}}).encode()


class Connection(asyncio.Protocol):
    """One client.

    :param admit: called with the head of each request, before its body is read; it may raise
        :class:`RefusalError`.
    :param handle: called with the connection, the head and the body of each request; it has to see to it that
        :meth:`answer` or :meth:`refuse` is called, now or later, on the event loop.
    :param most: bytes that a body may have.
    """

    def __init__(
        self,
        admit: Callable[[Head], None],
        handle: Callable[[Connection, Head, bytes], None],
        *,
        most: int,
    ) -> None:
        self._admit = admit
        self._handle = handle
        self._most = most
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answering: Head | None = None
        self._arriving: Head | None = None
        self._writable = True
        self._refused = False
        self._at_end = False
        self.last = time.monotonic()

    @property
    def open(self) -> bool:
        """Whether the client is still there."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def connected(self) -> bool:
        """Whether there is a socket: it outlives :attr:`open` until the last answer has been sent."""
        return self._transport is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered."""
        return self._answering is None

    def close(self) -> None:
        """Close, after what has been written."""
        if self._transport is not None:
            self._transport.close()

    # --- called by asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._transport = None

    def eof_received(self) -> bool:
        """The client sends no more; what it has asked for is answered before the connection is closed."""
        self._at_end = True
        self._advance()
        return not self.idle

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self.last = time.monotonic()
        self._buffer += data
        if self.idle:
            self._advance()
        elif self._transport is not None and len(self._buffer) > self._most:
            self._transport.pause_reading()

    # --- requests -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Hand over the next request, if it is whole."""
        if not (self.idle and self._writable and self.open) or self._refused:
            return
        try:
            if self._arriving is None and not self._read_head():
                return
        except RefusalError as refusal:
            self._write(refusal.status, refusal.body(), keep_alive=False)
            self._linger()
            return
        head = self._arriving
        if head is not None and len(self._buffer) >= head.length:
            body = bytes(self._buffer[: head.length])
            del self._buffer[: head.length]
            self._answering, self._arriving = head, None
            self._handle(self, head, body)

    def _read_head(self) -> bool:
        """Take the head of the next request, if it is there."""
        end = self._buffer.find(b"\r\n\r\n", 0, _HEAD)
        if end < 0:
            if len(self._buffer) >= _HEAD:
                raise RefusalError(431, f"more than {_HEAD} bytes of headers")
            return False
        head = self._parsed(self._buffer[:end].decode("latin-1"))
        self._admit(head)
        del self._buffer[: end + 4]
        if len(self._buffer) < head.length and head.headers.get("expect", "").lower() == "100-continue":
            assert self._transport is not None
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._arriving = head
        return True

    def _parsed(self, text: str) -> Head:
        first, *lines = text.lstrip("\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise RefusalError(400, "no request of HTTP/1.1")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise RefusalError(400, f"no header: {line[:80]!r}")
            if name.lower() in _ONCE and name.lower() in headers:
                raise RefusalError(400, f"two headers {name}")
            headers[name.lower()] = value.strip()
        if "transfer-encoding" in headers or (words[0] == "POST" and "content-length" not in headers):
            raise RefusalError(411, "a body needs the header Content-Length")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise RefusalError(400, f"Content-Length is {length[:80]!r}")
        if len(length) > 18 or int(length) > self._most:
            raise RefusalError(413, f"a body of {length[:18]} bytes; at most {self._most}")
        wish = headers.get("connection", "").lower()
        kept = "keep-alive" in wish if words[2] == "HTTP/1.0" else "close" not in wish
        return Head(words[0], words[1].partition("?")[0], headers, int(length), kept)

    # --- answers ------------------------------------------------------------------------------------

    def answer(self, body: bytes) -> None:
        """Answer the present request with a JSON document."""
        self._finish(200, body)

    def refuse(self, refusal: RefusalError) -> None:
        """Answer the present request with an error."""
        self._finish(refusal.status, refusal.body())

    def _finish(self, status: int, body: bytes) -> None:
        head, self._answering = self._answering, None
        if head is None or self._transport is None or not self.open:
            return
        self.last = time.monotonic()
        self._write(status, body, keep_alive=head.keep_alive)
        if not head.keep_alive or (self._at_end and not self._buffer):
            self._transport.close()
            return
        self._transport.resume_reading()
        if self._buffer:  # later, or many requests sent at once would become a deep stack
            asyncio.get_running_loop().call_soon(self._advance)

    def _write(self, status: int, body: bytes, *, keep_alive: bool) -> None:
        if self._transport is not None:
            self._transport.write(_HEADS[status, keep_alive] % len(body) + body)

    def _linger(self) -> None:
        """Close, but only when the client has read: what it still sends would reset the connection."""
        self._refused = True
        self._buffer.clear()
        if self._transport is not None:
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER, self.close)


def _template(status: int, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        "Content-Length: %d",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *(["Retry-After: 1"] if status == 503 else []),
        *(["WWW-Authenticate: Bearer"] if status == 401 else []),
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


_HEADS: dict[tuple[int, bool], bytes] = {
    (status, kept): _template(status, kept) for status in _STATUSES for kept in (True, False)
}
