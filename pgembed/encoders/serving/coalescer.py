"""Requests share an encoder: small ones are encoded together, large ones in pieces between them."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.reranker import Reranker
from pgembed.encoders.text.texts import Counts, Kind, Text, Vectors, pieces

Result = tuple[Vectors, Counts] | BaseException

# A text costs the characters that are encoded, and a constant.
_CHARACTERS = 4  # a token
_LONGEST = 512  # tokens, if the encoder does not say
_EACH = 16
_PIECES = 4  # of large requests in one pass
_SPEED = 20_000.0  # at first, in costs per second


class BusyError(Exception):
    """Too many requests wait, or one has waited too long."""


@dataclass(eq=False)
class Job:
    """Texts of one request.

    :ivar reply: called with their vectors and numbers of tokens, or with the error.
    :ivar wanted: whether a client still waits for them.
    :ivar pieces: what has not been encoded yet; each is encoded as a whole.
    :ivar start: the clock when the next piece begins to wait.
    """

    texts: Sequence[Text]
    kind: Kind
    reply: Callable[[Result], None]
    wanted: Callable[[], bool] = lambda: True
    since: float = field(default_factory=time.monotonic)
    pieces: deque[Piece] = field(default_factory=deque)
    start: float = 0.0
    encoded: list[tuple[Vectors, Counts]] = field(default_factory=list)

    @property
    def due(self) -> float:
        """Of the last piece, now; of others, when their share of the time would have been enough."""
        return self.start + (self.pieces[0].cost if len(self.pieces) > 1 else 0.0)


class Piece(NamedTuple):
    """Texts that are encoded together, and their cost."""

    texts: Sequence[Text]
    cost: int


Pass = list[tuple[Job, Piece]]
Answers = Sequence[tuple[Job, Result]]


class Coalescer:
    """One encoder and the thread that feeds it.

    There is no delay: a request that finds the encoder idle is encoded at once, those that come meanwhile are
    the next pass. So a single client has the latency of one forward pass, and many share theirs.

    A pass takes about ``pass_seconds``, by the speed of those before it; larger requests are cut into pieces.
    The order is that of fair queueing: a request of one piece comes before the pieces of larger ones,
    until these have had less than their share of the time.

    :param encoder: what to feed.
    :param done: called on the thread with the jobs that are done and their results; it replies.
    :param texts: most texts of a pass.
    :param waiting: most requests that may wait; :meth:`submit` refuses more.
    :param seconds: how long a request may wait before it is given up.
    :param pass_seconds: how long a pass should take.
    """

    def __init__(
        self,
        encoder: Encoder | Reranker,
        done: Callable[[Answers], object],
        *,
        texts: int = 256,
        waiting: int = 1024,
        seconds: float = 60.0,
        pass_seconds: float = 0.25,
    ) -> None:
        self.encoder = encoder
        self._done = done
        self._most = texts
        self._most_waiting = waiting
        self._seconds = seconds
        self._pass_seconds = pass_seconds
        self._speed = _SPEED
        self._clock = 0.0  # the share of each that waits, so far
        self._waiting: list[Job] = []
        self._arrived = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"pgembed-{encoder.name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, whose texts have been checked before.

        :raises BusyError: too many requests wait, or the server stops.
        """
        job.pieces = deque(self._cut(job.texts))
        with self._arrived:
            if self._closed:
                raise BusyError("the server is being stopped")
            if len(self._waiting) >= self._most_waiting:
                raise BusyError("too many requests are waiting")
            job.start = self._clock
            self._waiting.append(job)
            self._arrived.notify()

    def close(self, seconds: float | None = None) -> bool:
        """Finish what waits, then stop; return after ``seconds`` at the latest.

        :returns: whether the encoder is idle.
        """
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @cached_property
    def _longest(self) -> int:
        """Characters of a text that count."""
        try:
            return _CHARACTERS * self.encoder.max_tokens
        except Exception:  # an encoder without files says so when it has to encode
            return _CHARACTERS * _LONGEST

    def _cost(self, text: Text) -> int:
        characters = len(text) if isinstance(text, str) else sum(map(len, text))
        return min(characters, self._longest) + _EACH

    def _cut(self, texts: Sequence[Text]) -> Iterator[Piece]:
        """Pieces of which several fit into a pass."""
        costs = [self._cost(text) for text in texts]
        room = self._speed * self._pass_seconds / _PIECES
        for start, end in pieces(costs, count=self._most, room=room):
            yield Piece(texts[start:end], sum(costs[start:end]))

    def _work(self) -> None:
        while True:
            with self._arrived:
                while not self._waiting:
                    if self._closed:
                        return
                    self._arrived.wait()
                answers = self._given_up()
                together, full = self._next_pass()
            if together:
                begin = time.perf_counter()
                answers += self._encoded(together)
                if full and together[0][0].kind == "document":  # queries may have been remembered
                    self._learn(together, time.perf_counter() - begin)
            self._done(answers)

    def _given_up(self) -> list[tuple[Job, Result]]:
        """Remove jobs whose client has gone, and those that have waited for too long."""
        late = time.monotonic() - self._seconds
        answers: list[tuple[Job, Result]] = []
        for job in self._waiting:
            if not job.wanted():
                answers.append((job, BusyError("nobody waits for the answer")))
            elif job.since < late and not job.encoded:
                answers.append((job, BusyError(f"no answer within {self._seconds:g} seconds")))
        for job, _ in answers:
            self._waiting.remove(job)
        return answers

    def _next_pass(self) -> tuple[Pass, bool]:
        """What is encoded next, all of one kind, and whether something did not fit."""
        queue = [(job.due, number, job) for number, job in enumerate(self._waiting)]
        queue = [entry for entry in queue if entry[2].kind == min(queue)[2].kind]
        heapq.heapify(queue)
        room = self._speed * self._pass_seconds
        together: Pass = []
        texts, cost, full = 0, 0, False
        while queue:
            _, number, job = heapq.heappop(queue)
            piece = job.pieces[0]
            if together and (texts + len(piece.texts) > self._most or cost + piece.cost > room):
                full = True
                continue  # a smaller one may fit
            together.append((job, job.pieces.popleft()))
            texts, cost = texts + len(piece.texts), cost + piece.cost
            job.start += piece.cost
            if job.pieces:
                heapq.heappush(queue, (job.due, number, job))
        self._clock += cost / max(len(self._waiting), 1)
        self._waiting = [job for job in self._waiting if job.pieces]
        return together, full

    def _encoded(self, together: Pass) -> list[tuple[Job, Result]]:
        """Encode; returns the jobs that are done, and their results."""
        texts = [text for _, piece in together for text in piece.texts]
        try:
            encode: Callable[[list[Any], Kind], tuple[Vectors, Counts]] = self.encoder.encode_counted
            vectors, counts = encode(texts, together[0][0].kind)
        except BaseException as error:  # even a panic of a library fails a request, not the server
            return self._failed(together, error)
        start = 0
        for job, piece in together:
            end = start + len(piece.texts)
            job.encoded.append((vectors[start:end], counts[start:end]))
            start = end
        jobs = dict.fromkeys(job for job, _ in together)
        return [(job, _joined(job.encoded)) for job in jobs if not job.pieces]

    def _failed(self, together: Pass, error: BaseException) -> list[tuple[Job, Result]]:
        """Try each job by itself, so that none fails because of another's texts."""
        jobs = list(dict.fromkeys(job for job, _ in together))
        if len(jobs) > 1:
            each = ([entry for entry in together if entry[0] is job] for job in jobs)
            return list(itertools.chain(*(self._encoded(alone) for alone in each)))
        with self._arrived:
            self._waiting = [job for job in self._waiting if job is not jobs[0]]
        return [(jobs[0], error)]

    def _learn(self, together: Pass, seconds: float) -> None:
        """How fast the encoder is; equal texts are encoded once."""
        different = {text for _, piece in together for text in piece.texts}
        found = sum(self._cost(text) for text in different) / seconds
        self._speed = min((self._speed + found) / 2, 2 * self._speed)


def _joined(parts: list[tuple[Vectors, Counts]]) -> tuple[Vectors, Counts]:
    if len(parts) == 1:
        return parts[0]
    vectors, counts = zip(*parts, strict=True)
    return np.concatenate(vectors), np.concatenate(counts)
