"""Batches across requests: what arrives while the encoder is busy is encoded together."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.runtime import Kind, Vectors


@dataclass
class Request:
    """Texts of one request and the promise of their vectors."""

    texts: list[str]
    kind: Kind
    vectors: Future[Vectors] = field(default_factory=Future)


class Coalescer:
    """One encoder and the thread that feeds it.

    Nothing is waited for: a request that finds the encoder idle is encoded at once, those that come meanwhile
    make up the next batch. So a single client has the latency of one forward pass, and many share theirs.

    :param encoder: what to feed.
    :param texts: most texts of a batch (a larger request is a batch of its own).
    :param waiting: most requests that may wait; :meth:`submit` refuses more.
    """

    def __init__(self, encoder: Encoder, *, texts: int = 256, waiting: int = 1024) -> None:
        self.encoder = encoder
        self._most = texts
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._held: deque[Request] = deque()
        self._thread = threading.Thread(target=self._work, name=f"pgembed-{encoder.name}", daemon=True)
        self._thread.start()

    def submit(self, texts: list[str], kind: Kind) -> Future[Vectors]:
        """Queue texts, which have been checked before.

        :raises queue.Full: too many requests wait.
        """
        request = Request(texts, kind)
        self._queue.put_nowait(request)
        return request.vectors

    def close(self) -> None:
        """Finish what waits, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._held.popleft() if self._held else self._queue.get()) is not None:
            batch, stop = self._together(first)
            self._encode(batch)
            if stop:
                return

    def _together(self, first: Request) -> tuple[list[Request], bool]:
        """``first`` and what waits behind it, as far as it fits; and whether the end was reached."""
        batch, size = [first], len(first.texts)
        while True:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
            if request is None:
                return batch, True
            if request.kind != first.kind or size + len(request.texts) > self._most:
                self._held.append(request)
                return batch, False
            batch.append(request)
            size += len(request.texts)

    def _encode(self, batch: list[Request]) -> None:
        encode = self.encoder.encode_queries if batch[0].kind == "query" else self.encoder.encode_documents
        try:
            vectors = encode([text for request in batch for text in request.texts])
        except Exception as error:
            for request in batch:
                request.vectors.set_exception(error)
            return
        start = 0
        for request in batch:
            request.vectors.set_result(vectors[start : start + len(request.texts)])
            start += len(request.texts)
