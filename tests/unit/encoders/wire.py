"""Connections to a server, byte for byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pgembed.encoders import Encoder, Reranker
from pgembed.encoders.serving import Limits, Server


@contextmanager
def serving(
    encoder: Encoder | None, token: str | None = None, rerankers: Sequence[Reranker] = (), **limits: Any
) -> Iterator[Server]:
    encoders = [] if encoder is None else [encoder]
    server = Server(encoders, rerankers=rerankers, port=0, token=token, limits=Limits(**limits))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(30)
    assert not thread.is_alive()


class Wire:
    """A connection that shows what comes back, byte for byte."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
        self.received = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, end: bytes) -> bytes:
        while end not in self.received:
            data = self.socket.recv(65536)
            assert data, self.received
            self.received += data
        head, _, self.received = self.received.partition(end)
        return head

    def answer(self) -> tuple[int, dict[str, str], Any]:
        first, *lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        while len(self.received) < int(headers["Content-Length"]):
            self.received += self.socket.recv(65536)
        length = int(headers["Content-Length"])
        body, self.received = self.received[:length], self.received[length:]
        return int(first.split()[1]), headers, json.loads(body)

    @property
    def closed(self) -> bool:
        return not self.received and self.socket.recv(1) == b""


def request(body: Any, *headers: str, path: str = "/v1/embeddings") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + content
