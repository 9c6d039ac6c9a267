"""What clients may request from a server, the bytes that it counts, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Protocol

from pgembed.exc import EncoderOptionError


class RefusalError(Exception):
    """An answer other than 200, in the shape of OpenAI's errors.

    :param kind: OpenAI's ``type``; derived from the status by default.
    :param param: the field of the request that is wrong.
    :param code: a name of the error for programs.
    :param headers: further lines of the answer's head.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> bytes:
        """The document."""
        return json.dumps({"error": self._error}).encode()


def overloaded(reason: str) -> RefusalError:
    """The refusal of a request that may be repeated a little later."""
    return RefusalError(503, reason, code="overloaded", headers="Retry-After: 1\r\n")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how long and how much clients may keep a server occupied.

    :ivar body: bytes of a request's body.
    :ivar texts: texts of a request.
    :ivar batch: texts of one pass of an encoder, of all requests together.
    :ivar pass_seconds: how long a pass should take: a larger request is cut into several, and others get
        their turn in between.
    :ivar waiting: requests that may wait for an encoder; more are answered with 503.
    :ivar seconds: how long a request may wait before its turn.
    :ivar connections: clients at once; beyond that, the one that has been idle for longest is closed.
    :ivar arriving: bytes of all bodies that have not arrived whole; beyond that, the oldest is refused.
    :ivar held: bytes of all requests that wait or are being answered, their answers included. A request that
        needs more than half of what is left is answered with 503, so that small ones always have room.
    :ivar idle: seconds for which a connection without requests is kept.
    :ivar header_seconds: seconds in which the whole head of a request must arrive.
    :ivar body_seconds: seconds in which the whole body must arrive.
    :ivar answer_seconds: seconds in which a client must have read its whole answer.
    :ivar stop_seconds: seconds in which a server that is being stopped finishes what it has begun.
    :raises EncoderOptionError: a limit that is not above 0.
    """

    body: int = 16 * 2**20
    texts: int = 2048
    batch: int = 256
    pass_seconds: float = 0.25
    waiting: int = 1024
    seconds: float = 60.0
    connections: int = 512
    arriving: int = 64 * 2**20
    held: int = 256 * 2**20
    idle: float = 120.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    answer_seconds: float = 60.0
    stop_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise EncoderOptionError(field.name, value, needed="more than 0")


class Sender(Protocol):
    """A connection whose request is arriving."""

    since: float

    def give_way(self, refusal: RefusalError) -> None:
        """Refuse it."""
        ...


class Arriving:
    """The bytes of bodies that have not arrived whole, counted as they come.

    Announced sizes do not count: they take no memory.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sum = 0
        self._bytes: dict[Sender, int] = {}

    def add(self, sender: Sender, count: int) -> None:
        """Count what has come; while that is too much, refuse those who began first."""
        self._bytes[sender] = self._bytes.get(sender, 0) + count
        self._sum += count
        while self._sum > self._most:
            oldest = min(self._bytes, key=lambda other: other.since)
            self.drop(oldest)
            oldest.give_way(overloaded("too many bytes are being received at once"))

    def drop(self, sender: Sender) -> None:
        """Forget a body that is whole, or given up."""
        self._sum -= self._bytes.pop(sender, 0)


class Held:
    """The bytes of requests from their arrival until their answers have been sent."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sum = 0

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes for the time of the block.

        :raises RefusalError: that is more than half of what is left, while others hold something.
        """
        if self._sum and size > (self._most - self._sum) / 2:
            raise overloaded("waiting requests take too much memory")
        self._sum += size
        try:
            yield
        finally:
            self._sum -= size
