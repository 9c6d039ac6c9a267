"""Batches across requests: what arrives while the encoder is busy is encoded together."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgembed.encoders.backend import Counts, Kind, Vectors
from pgembed.encoders.encoder import Encoder

Result = tuple[Vectors, Counts] | Exception


class BusyError(Exception):
    """Too many requests wait, or one has waited too long."""


@dataclass(eq=False)
class Job:
    """Texts of one request.

    :ivar reply: what to do with their vectors and numbers of tokens, or with the error.
    :ivar wanted: whether somebody still waits for them.
    """

    texts: list[str]
    kind: Kind
    reply: Callable[[Result], None]
    wanted: Callable[[], bool] = lambda: True
    since: float = field(default_factory=time.monotonic)


Answers = Sequence[tuple[Job, Result]]


class Coalescer:
    """One encoder and the thread that feeds it.

    Nothing is waited for: a request that finds the encoder idle is encoded at once, those that come meanwhile
    make up the next batch. So a single client has the latency of one forward pass, and many share theirs.

    :param encoder: what to feed.
    :param done: called on the thread with the jobs of a batch and what became of each; it replies.
    :param texts: most texts of a batch (a larger request is a batch of its own).
    :param waiting: most requests that may wait; :meth:`submit` refuses more.
    :param seconds: how long a request may wait before it is given up.
    """

    def __init__(
        self,
        encoder: Encoder,
        done: Callable[[Answers], object],
        *,
        texts: int = 256,
        waiting: int = 1024,
        seconds: float = 60.0,
    ) -> None:
        self.encoder = encoder
        self._done = done
        self._most = texts
        self._most_waiting = waiting
        self._seconds = seconds
        self._waiting: deque[Job] = deque()
        self._arrived = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"pgembed-{encoder.name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, whose texts have been checked before.

        :raises BusyError: too many requests wait, or the end is near.
        """
        with self._arrived:
            if self._closed:
                raise BusyError("the server is being stopped")
            if len(self._waiting) >= self._most_waiting:
                raise BusyError("too many requests are waiting")
            self._waiting.append(job)
            self._arrived.notify()

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._together():
            batch = [job for job in batch if job.wanted()]
            late = time.monotonic() - self._seconds
            in_time = [job for job in batch if job.since >= late]
            given_up = BusyError(f"no answer within {self._seconds:g} seconds")
            answers: list[tuple[Job, Result]] = [(job, given_up) for job in batch if job.since < late]
            if in_time:
                answers += zip(in_time, self._encoded(in_time), strict=True)
            self._done(answers)

    def _together(self) -> list[Job]:
        """The oldest job and all of its kind that fit beside it; nothing at the end."""
        with self._arrived:
            while not self._waiting:
                if self._closed:
                    return []
                self._arrived.wait()
            first = self._waiting.popleft()
            batch, left, size = [first], deque[Job](), len(first.texts)
            for job in self._waiting:
                if job.kind == first.kind and size + len(job.texts) <= self._most:
                    batch.append(job)
                    size += len(job.texts)
                else:
                    left.append(job)
            self._waiting = left
            return batch

    def _encoded(self, jobs: list[Job]) -> list[Result]:
        """What becomes of each of these jobs."""
        try:
            texts = [text for job in jobs for text in job.texts]
            vectors, counts = self.encoder.encode_counted(texts, jobs[0].kind)
        except Exception as error:
            return [error] * len(jobs)
        ends = list(itertools.accumulate(len(job.texts) for job in jobs))
        return [(vectors[start:end], counts[start:end]) for start, end in itertools.pairwise([0, *ends])]
