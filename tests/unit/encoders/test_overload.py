"""Clients that are too slow, too many or too greedy: who is answered all the same, and what ends when."""

from __future__ import annotations

import json
import select
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from pgembed.encoders import Encoder
from pgembed.encoders.serving import Limits, Server
from pgembed.exc import EncoderOptionError
from tests.unit.encoders.wire import Wire, request, serving

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def encoder(tiny: Callable[[str], Path]) -> Encoder:
    return Encoder(tiny("bert"))


class Panic(BaseException):
    """As the tokenizers package raises them."""


class Gate(Encoder):
    """An encoder that waits until it may go on, and panics where a text says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.started, self.go_on = threading.Event(), threading.Event()

    def encode_counted(self, texts: Any, kind: Any) -> Any:
        self.started.set()
        assert self.go_on.wait(30)
        if "panic" in texts:
            raise Panic("a panic of a library")
        return super().encode_counted(texts, kind)


@pytest.fixture
def gate(tiny: Callable[[str], Path]) -> Iterator[Gate]:
    gate = Gate(tiny("bert"))
    yield gate
    gate.go_on.set()


def is_answered(server: Server, text: str = "a good client's") -> bool:
    with Wire(server) as wire:
        wire.send(request({"input": text}))
        return wire.answer()[0] == 200


# --- too slow -----------------------------------------------------------------------------------------


def trickle(wire: Wire, data: bytes) -> tuple[int, Any]:
    """Send byte by byte, until there is an answer."""
    wire.socket.setblocking(False)
    for byte in data:
        wire.send(bytes([byte]))
        time.sleep(0.02)
        try:
            wire.received += wire.socket.recv(65536)
        except BlockingIOError:
            continue
        break
    wire.socket.settimeout(20)
    status, headers, answer = wire.answer()
    assert headers["Connection"] == "close"
    return status, answer["error"]["message"]


def test_headers_have_one_deadline_whatever_comes_between(encoder: Encoder) -> None:
    with serving(encoder, header_seconds=1) as server, Wire(server) as wire:
        status, message = trickle(wire, b"GET /health HTTP/1.1\r\nCookie: " + b"x" * 1000)
        assert (status, message) == (408, "the headers did not arrive whole within 1 seconds")
        assert is_answered(server)


def test_bodies_have_one_deadline_whatever_comes_between(encoder: Encoder) -> None:
    with serving(encoder, body_seconds=1) as server, Wire(server) as wire:
        wire.send(HEAD % 5000)
        status, message = trickle(wire, b"x" * 1000)
        assert (status, message) == (408, "the body did not arrive whole within 1 seconds")
        assert is_answered(server)


def is_reset(wire: Wire, data: bytes) -> bool:
    """Whether the server has closed while it is sent more, and nothing is read."""
    try:
        with suppress(TimeoutError):
            wire.send(data)
    except ConnectionError:
        return True
    return False


def test_a_client_that_never_reads_is_cut_off(encoder: Encoder) -> None:
    many = request({"input": ["x"] * 2000})  # an answer of more than half a megabyte
    with serving(encoder, answer_seconds=1, held=3_000_000) as server:
        with Wire(server) as deaf:
            deaf.socket.settimeout(0.1)
            assert any(is_reset(deaf, many * 20) for _ in range(200))
            assert is_answered(server)
        # and what it held has been given back
        with Wire(server) as wire:
            wire.send(many)
            assert wire.answer()[0] == 200


# --- too many -----------------------------------------------------------------------------------------


def test_connections_that_ask_nothing_give_way(encoder: Encoder) -> None:
    with serving(encoder, connections=10) as server, ExitStack() as stack:
        slow = []
        for number in range(25):
            slow.append(stack.enter_context(Wire(server)))
            slow[-1].send(b"GET /health HTTP/1.1\r\n" if number % 2 else b"")
            if number % 5 == 0:
                assert is_answered(server)
        for wire in slow[:10]:
            with suppress(ConnectionError):
                assert wire.closed
        slow[-1].send(b"GET /health HTTP/1.1\r\n\r\n")
        assert slow[-1].answer()[0] == 200


def test_connections_that_wait_for_answers_do_not_give_way(gate: Gate) -> None:
    with serving(gate, connections=3) as server, ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(3)]
        for wire in wires:
            wire.send(request({"input": "waits"}) + request({"input": "waits too"}))
        gate.started.wait(10)
        while True:  # until all three have been read
            with Wire(server) as late:
                late.send(b"GET /health HTTP/1.1\r\n\r\n")
                status, headers, answer = late.answer()
            if status != 200:
                break
        assert (status, headers["Retry-After"], answer["error"]["code"]) == (503, "1", "overloaded")
        gate.go_on.set()
        assert [wire.answer()[0] for wire in wires * 2] == [200] * 6


def test_open_files_are_a_limit_of_connections(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (170, 170))
    with serving(encoder) as server, ExitStack() as stack:
        assert "6 connections" in caplog.text
        wires = [stack.enter_context(Wire(server)) for _ in range(12)]
        assert is_answered(server)
        assert wires[0].closed


# --- too much -----------------------------------------------------------------------------------------


def test_the_oldest_unfinished_body_gives_way(encoder: Encoder) -> None:
    body = json.dumps({"input": "word " * 30_000}).encode()
    with serving(encoder, arriving=400_000) as server, ExitStack() as stack:
        wires = []
        for _ in range(4):
            wires.append(stack.enter_context(Wire(server)))
            wires[-1].send(HEAD % len(body) + body[:120_000])
            assert is_answered(server)  # small requests are still answered; and what was sent has arrived
        status, headers, answer = wires[0].answer()
        assert (status, headers["Retry-After"]) == (503, "1")
        assert answer["error"]["message"] == "too many bytes are being received at once"
        for wire in wires[1:]:
            wire.send(body[120_000:])
            assert wire.answer()[0] == 200


def test_memory_of_unfinished_bodies_is_bounded(encoder: Encoder) -> None:
    tracemalloc.start()
    try:
        with serving(encoder, arriving=4_000_000) as server, ExitStack() as stack:
            for _ in range(80):  # 120 MB, of which the limit lets four stay
                wire = stack.enter_context(Wire(server))
                wire.send(HEAD % 1_500_001)
                with suppress(ConnectionError):
                    wire.send(b"x" * 1_500_000)
            assert is_answered(server)
            for _ in range(80):  # whole, but nonsense, on connections that are kept
                wire = stack.enter_context(Wire(server))
                wire.send(request(b"x" * 1_500_000))
                assert wire.answer()[0] == 400
            assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


def test_what_is_announced_takes_nothing(encoder: Encoder) -> None:
    with serving(encoder, arriving=100_000) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(Wire(server)).send(HEAD % 10_000_000)
        assert is_answered(server)


def test_requests_that_wait_leave_room_for_small_ones(gate: Gate) -> None:
    large = request({"input": "word " * 30_000})
    with serving(gate, held=500_000) as server, ExitStack() as stack:
        first, second, third, small = (stack.enter_context(Wire(server)) for _ in range(4))
        first.send(large)
        gate.started.wait(10)
        second.send(large)
        third.send(large)
        (told,), _, _ = select.select([second.socket, third.socket], [], [], 20)  # whichever came later
        refused = second if told is second.socket else third
        assert refused.answer()[0] == 503
        small.send(request({"input": "small"}))
        gate.go_on.set()
        assert small.answer()[0] == 200
        assert first.answer()[0] == 200


@pytest.mark.parametrize("name", ["connections", "arriving", "header_seconds", "stop_seconds"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(EncoderOptionError, match=name):
        Limits(**{name: 0})


# --- failures -----------------------------------------------------------------------------------------


def test_a_panic_is_an_answer(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    gate.go_on.set()
    with serving(gate) as server:
        with Wire(server) as wire:
            wire.send(request({"input": "panic"}))
            status, _, answer = wire.answer()
        assert (status, answer["error"]["type"]) == (500, "encoder_error")
        assert answer["error"]["message"] == "a panic of a library"
        assert is_answered(server)
    assert "an encoder failed" in caplog.text


# --- the end ------------------------------------------------------------------------------------------


def test_stopping_waits_for_nobody_for_long(gate: Gate) -> None:
    """Not for a client that is silent, slow, or does not read, nor for an encoder that hangs."""
    server = Server([gate], port=0, limits=Limits(stop_seconds=0.3, answer_seconds=60))
    at_rest: list[bool] = []
    thread = threading.Thread(target=lambda: at_rest.append(server.serve_forever()))
    thread.start()
    with ExitStack() as stack:
        idle, head, body, waiting = (stack.enter_context(Wire(server)) for _ in range(4))
        head.send(b"GET /health HTT")
        body.send(HEAD % 1000 + b"{")
        waiting.send(request({"input": "hangs"}))
        gate.started.wait(10)
        server.shutdown()
        thread.join(20)
        assert at_rest == [False]
        for wire in (head, body):
            status, _, answer = wire.answer()
            assert (status, answer["error"]["message"]) == (503, "the server is being stopped")
        assert idle.closed
        assert waiting.closed
