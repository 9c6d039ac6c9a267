"""The server on the wire: what all kinds of clients send, whole and in pieces, and nonsense."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from pgembed.encoders import Encoder
from pgembed.encoders.serving import Server
from tests.unit.encoders.models import MODELS
from tests.unit.encoders.wire import Wire, request, serving

HEALTH = b"GET /health HTTP/1.1\r\n\r\n"
PROMPTS = {"document": "passage: ", "query": "query: "}


@pytest.fixture(scope="module")
def encoder(tiny: Callable[[str], Path]) -> Encoder:
    return Encoder(
        tiny("bert"), max_tokens=16, query_prompt=PROMPTS["query"], document_prompt=PROMPTS["document"]
    )


@pytest.fixture(scope="module")
def server(encoder: Encoder) -> Iterator[Server]:
    with serving(encoder, body=200_000) as running:
        yield running


def is_well(server: Server) -> bool:
    with Wire(server) as wire:
        wire.send(HEALTH)
        return wire.answer()[0] == 200


def ask(server: Server, body: Any) -> dict[str, Any]:
    with Wire(server) as wire:
        wire.send(request(body))
        status, _, answer = wire.answer()
        assert status == 200, answer
        return answer


# --- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["document", "query"])
def test_tokens_are_counted(server: Server, kind: str) -> None:
    """As the tokenizer itself counts: prompt and special tokens included, nothing beyond the limit."""
    plain = tokenizers.Tokenizer.from_file(str(MODELS / "bert" / "tokenizer.json"))
    plain.no_padding()
    plain.no_truncation()
    texts = ["reset the password", "printer", "printer", "", "printer reset " * 30, "the printer is on fire"]
    counts = [min(len(plain.encode(PROMPTS[kind] + text).ids), 16) for text in texts]
    assert len(set(counts)) >= 4
    for _ in range(2):  # queries are remembered, and so are their tokens
        usage = ask(server, {"input": texts, "input_type": kind})["usage"]
        assert usage == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    for text, count in zip(texts, counts, strict=True):
        assert ask(server, {"input": text, "input_type": kind})["usage"]["total_tokens"] == count


def test_both_encodings_give_the_same_floats(server: Server, encoder: Encoder) -> None:
    texts = ["reset the password", "printer", "reset the password"]
    floats = ask(server, {"input": texts, "encoding_format": "float", "model": "tiny"})
    coded = ask(server, {"input": texts, "encoding_format": "base64"})
    assert [item["index"] for item in floats["data"]] == [0, 1, 2]
    vectors = np.array([item["embedding"] for item in floats["data"]], dtype=np.float32)
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in coded["data"]]
    assert np.array_equal(vectors, decoded)
    assert np.abs(vectors - encoder.encode_documents(texts)).max() < 1e-6


def test_encoder_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    broken = Encoder(MODELS.parent / "none", fingerprint="f" * 32, dimensions=3)
    with serving(broken) as server, Wire(server) as wire:
        for _ in range(2):  # and the server goes on
            wire.send(request({"input": "x"}))
            status, _, answer = wire.answer()
            assert (status, answer["error"]["type"]) == (500, "encoder_error")
            assert "none" in answer["error"]["message"]
    assert "an encoder failed" in caplog.text


# --- the wire -----------------------------------------------------------------------------------------


def test_requests_in_pieces_and_in_a_row(server: Server) -> None:
    with Wire(server) as wire:
        for byte in request({"input": "in pieces"}):
            wire.send(bytes([byte]))
        assert wire.answer()[0] == 200
        texts = [f"text {'word ' * index}" for index in range(30)]
        wire.send(b"".join(request({"input": text, "encoding_format": "base64"}) for text in texts))
        counts = [wire.answer()[2]["usage"]["total_tokens"] for _ in texts]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1] == 16
        wire.send(b"GET /health?from=here HTTP/1.1\r\n\r\n")
        assert wire.answer()[2] == {"status": "ok"}


def test_a_client_that_sends_no_more_is_answered(server: Server) -> None:
    with Wire(server) as wire:
        wire.send(request({"input": "the last"}) + request({"input": "the very last"}))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer()[0] == wire.answer()[0] == 200
        assert wire.closed


def test_expectation(server: Server) -> None:
    """curl asks first, when a body is large."""
    whole = request({"input": "x" * 100_000}, "Expect: 100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    with Wire(server) as wire:
        wire.send(head + b"\r\n\r\n")
        assert wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        wire.send(body)
        assert wire.answer()[0] == 200


@pytest.mark.parametrize(
    ("version", "wish", "kept"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "Keep-Alive", True)],
)
def test_connections_are_kept_on_request(server: Server, version: str, wish: str, kept: bool) -> None:
    header = f"Connection: {wish}\r\n" if wish else ""
    with Wire(server) as wire:
        wire.send(f"GET /health HTTP/{version}\r\n{header}\r\n".encode())
        status, headers, _ = wire.answer()
        assert (status, headers["Connection"]) == (200, "keep-alive" if kept else "close")
        if kept:
            wire.send(HEALTH)
            assert wire.answer()[0] == 200
        else:
            assert wire.closed


GET, POST = b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"\x16\x03\x01\x02\x00\x01 hello of TLS\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/2\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nno header\r\n\r\n", 400, "header"),
        (b"GET /health HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400, "whitespace"),
        (b"GET /health HTTP/1.1\r\nContent-Length : 3\r\n\r\n", 400, "header"),
        (b"POST /v1/embeddings HTTP/1.1\r\n\r\n", 411, "needs"),
        (b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", 411, "needs"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "Content-Length"),
        (
            POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            400,
            "Content-Length",
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
            400,
            "Content-Length",
        ),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n{}", 400, "Transfer-Encoding"),
        (POST + b"Content-Length: 2, 2\r\n\r\n{}", 400, "Content-Length"),
        (POST + b"Content-Length: +2\r\n\r\n{}", 400, "Content-Length"),
        (POST + b"Content-Length:\r\n\r\n{}", 400, "Content-Length"),
        (POST + b"Content-Length: -2\r\n\r\n{}", 400, "Content-Length"),
        (GET + b"Authorization: a\r\nAuthorization: b\r\n\r\n", 400, "two headers Authorization"),
        (
            GET + b"".join(b"A%d: b\r\n" % i for i in range(300)) + b"\r\n",
            431,
            "256 headers",
        ),
        (GET + b"A: b\0c\r\n\r\n", 400, "header"),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n", 400, "CRLF"),
        (POST + b"Content-Length: \xb2\r\n\r\n{}", 400, "Content-Length"),
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 413, "at most 200000"),
        (GET + b"Cookie: " + b"x" * 70_000, 431, "headers"),
        (request(b"[" * 100_000), 400, ""),
        # The client gets its answer though it was still sending.
        (request(b"x" * 5_000_000)[:2_000_000], 413, ""),
        (b"GET /v1/embeddings HTTP/1.1\r\n\r\n", 405, ""),
        (b"DELETE /health HTTP/1.1\r\n\r\n", 405, ""),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 404, ""),
        (GET + b"\r\n", 404, ""),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_what_is_refused(server: Server, sent: bytes, status: int, message: str) -> None:
    with Wire(server) as wire:
        wire.send(sent)
        found, headers, answer = wire.answer()
        assert found == status
        assert message in answer["error"]["message"]
        # Where a request is nonsense or left unread, nobody knows where the next one begins.
        assert headers["Connection"] == ("close" if message or status == 413 else "keep-alive")
        if message:
            assert wire.closed
    assert is_well(server)


def test_without_a_token_no_body_is_read(encoder: Encoder) -> None:
    with serving(encoder, token="secret") as server:
        for given in ((), ("Authorization: Bearer wrong",), ("Authorization: Bearer sécret",)):
            with Wire(server) as wire:
                wire.send(request({"input": "x"}, *given).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
                status, headers, _ = wire.answer()
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        with Wire(server) as wire:
            wire.send(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer secret\r\n\r\n")
            assert wire.answer()[2]["data"][0]["id"] == "tiny"


# --- coming and going ---------------------------------------------------------------------------------


def test_clients_that_leave(server: Server) -> None:
    for _ in range(20):
        with Wire(server) as wire:
            wire.send(request({"input": ["leaving"] * 50}))
        with Wire(server) as wire:
            wire.send(request({"input": "half"})[:-5])
    assert ask(server, {"input": "still there"})["usage"]["total_tokens"] > 0


def test_idle_connections_are_closed(encoder: Encoder) -> None:
    with serving(encoder, idle=1) as server, Wire(server) as wire:
        wire.send(HEALTH)
        assert wire.answer()[0] == 200
        start = time.monotonic()
        assert wire.closed
        assert time.monotonic() - start < 60


def test_what_was_accepted_is_answered(encoder: Encoder) -> None:
    """A server that stops finishes what it has begun, and says so to who comes later."""
    texts = ["a text of some words " + str(index) for index in range(2000)]
    server = Server([encoder], port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with Wire(server) as wire, Wire(server) as late:
        late.send(HEALTH)
        assert late.answer()[0] == 200
        wire.send(request({"input": texts}))
        late.send(HEALTH)
        assert late.answer()[0] == 200  # the other request has arrived
        server.shutdown()
        assert len(wire.answer()[2]["data"]) == 2000
        assert late.closed
    thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(OSError, match="refused"):
        Wire(server)
    server.shutdown()  # once more does no harm
    early = Server([encoder], port=server.server_port)
    early.shutdown()
    early.serve_forever()
