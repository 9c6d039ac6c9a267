"""Servers that answer slowly, without end, with something else, or from elsewhere: bounded errors."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pgembed.encoders import Encoder
from pgembed.exc import EncoderError, EncoderOptionError, EncoderServerError

OK = b"HTTP/1.1 200 OK\r\n"


def _request(client: socket.socket) -> bytes:
    """Head and body, which come in pieces."""
    received = client.recv(2**20)
    while True:
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        more = b"" if length is None or len(body) >= int(length[1]) else client.recv(2**20)
        if not more:
            return received
        received += more


@contextmanager
def answering(answer: Callable[[bytes], Iterable[bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each request with some pieces and closes, and what it was sent."""
    listening = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listening.accept()
                with client, suppress(OSError):
                    client.settimeout(20)
                    received.append(_request(client))
                    for piece in answer(received[-1]):
                        client.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(20)
    assert not thread.is_alive()


def remote(url: str, **options: Any) -> Encoder:
    stated = {"fingerprint": "mine-1", "dimensions": 2, "retries": 0, "timeout": 20}
    return Encoder.remote(url, **stated | options)


def slowly(start: bytes, piece: bytes) -> Callable[[bytes], Iterable[bytes]]:
    def answer(request: bytes) -> Iterator[bytes]:
        yield start
        for _ in range(1000):
            time.sleep(0.02)
            yield piece

    return answer


def always(start: bytes, piece: bytes) -> Callable[[bytes], Iterable[bytes]]:
    return lambda request: itertools.chain([start], itertools.repeat(piece, 4000))


MUCH = b"x" * 2**16
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        slowly(b"", b"H"),
        slowly(OK, b"A: b\r\n"),
        slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        slowly(OK + b"Content-Length: 100000\r\n\r\n", b"{"),
        slowly(CHUNKED, b"1\r\n{\r\n"),
        slowly(OK + b"\r\n", b"["),
    ],
)
def test_an_answer_has_one_deadline_whatever_comes_between(answer: Any) -> None:
    with answering(answer) as (url, received), pytest.raises(EncoderServerError, match="no answer"):
        remote(url, timeout=0.3).encode_documents(["x"])
    assert len(received) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (always(OK + b"\r\n", MUCH), "an answer of more than"),
        (always(OK + b"Content-Length: 99999999999999\r\n\r\n", MUCH), "an answer of more than"),
        (always(CHUNKED, b"10000\r\n" + MUCH + b"\r\n"), "an answer of more than"),
        (always(CHUNKED + b"ffffffffffff\r\n", MUCH), "an answer of more than"),
        (always(CHUNKED + b"-1\r\n", MUCH), "an answer of more than"),
        (always(CHUNKED + b"-5\r\n", MUCH), "no answer"),
        (always(CHUNKED + b"zz\r\n", MUCH), "no answer"),
        # Python 3.14 counts the interim responses itself.
        (
            always(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
            "an answer of more than|more than 100 interim",
        ),
        (always(OK, b"A: b\r\n" * 1000), "no answer"),
        (always(b"", MUCH), "no answer"),
        (lambda request: [OK + b"Content-Length: 50\r\n\r\n{}"], "no answer"),
        (lambda request: [OK + b"Content-Length: -50\r\n\r\n{"], "is not JSON"),
        (lambda request: [CHUNKED + b"2\r\n{}\r\n"], "no answer"),
        (lambda request: [], "no answer"),
        (lambda request: [b"\x16\x03\x01\x02\x00\x01\r\n\r\n"], "no answer"),
        (lambda request: [OK + b"\r\n\xff\xfe\x00"], "is not JSON"),
        (lambda request: [OK + b"\r\n" + b"[" * 10_000], "is not JSON"),
        (lambda request: [b"HTTP/1.1 500 No\r\n\r\n" + b"\x1b[31m" * 1000], r"refused with 500:  \[31m"),
        (lambda request: [b'HTTP/1.1 500 No\r\n\r\n{"error": {"message": {"a": "\\u001b"}}}'], "500: {'a'"),
    ],
)
def test_an_answer_is_bounded(answer: Any, message: str) -> None:
    with answering(answer) as (url, _), pytest.raises(EncoderServerError, match=message) as caught:
        remote(url).encode_documents(["x"])
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def models_and(embeddings: Any, models: Any = None) -> Callable[[bytes], Iterable[bytes]]:
    def answer(request: bytes) -> Iterable[bytes]:
        content = {"data": models or []} if request.startswith(b"GET") else embeddings
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        return [OK + b"Content-Length: %d\r\n\r\n" % len(encoded) + encoded]

    return answer


@pytest.mark.parametrize(
    "embeddings",
    [
        b'{"data": [{"index": 1e999, "embedding": [1, 2]}]}',
        b'{"data": [{"index": NaN, "embedding": [1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [1' + b"0" * 400 + b", 2]}]}",
        b'{"data": [{"index": 0, "embedding": [1e999, 2]}]}',
        b'{"data": [{"index": 0, "embedding": {"0": 1, "1": 2}}]}',
        b'{"data": [{"index": 0, "embedding": "\xe2\x82\xac"}]}',
        b'{"data": [{"index": 0, "embedding": ' + b"[" * 90 + b"]" * 90 + b"}]}",
        b'{"data": {"index": 0}}',
        b'{"data": "xy"}',
        b'{"data": true}',
        b"{}",
    ],
)
def test_an_answer_with_something_else_in_it(embeddings: bytes) -> None:
    with answering(models_and(embeddings)) as (url, _), pytest.raises(EncoderServerError):
        remote(url).encode_documents(["x"])


@pytest.mark.parametrize(
    "told",
    [
        1,
        [],
        {"format": 1},
        {"format": []},
        {"format": 1, "pooling": 3, "steps": {}},
        {"format": 1, "dimensions": 10**12, "pooling": [], "steps": [], "name": "\ud800"},
    ],
)
def test_a_spec_that_cannot_be_read(told: Any) -> None:
    models = [{"id": "their-model", "pgembed": told}]
    with answering(models_and({}, models)) as (url, _), pytest.raises(EncoderError):
        Encoder.remote(url, retries=0).encode_documents(["x"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_follow_to_no_other_place(status: int) -> None:
    with answering(lambda request: [OK + b"Content-Length: 2\r\n\r\n{}"]) as (elsewhere, arrived):
        place = f"{elsewhere}/v1/embeddings".encode()
        answer = b"HTTP/1.1 %d Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, place)
        with (
            answering(lambda request: [answer]) as (url, received),
            pytest.raises(EncoderServerError, match="It redirects to") as caught,
        ):
            remote(url, token="secret").encode_documents(["x"])
        assert caught.value.status == status
        assert b"Bearer secret" in received[0]
        assert arrived == []


# --- proxies ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


VECTORS = {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}


def test_a_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(models_and(VECTORS)) as (url, received):
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:p%40ss@"))
        far = remote("http://embeddings.invalid:81/base", token="secret")
        assert far.encode_documents(["x"]).tolist() == [[1.0, 2.0]]
    lines = received[-1].decode().split("\r\n")
    assert lines[0] == "POST http://embeddings.invalid:81/base/v1/embeddings HTTP/1.1"
    assert "Host: embeddings.invalid:81" in lines
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in lines


def test_a_proxy_of_https_sees_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda request: [b"HTTP/1.1 403 No\r\n\r\n"]) as (url, received):
        monkeypatch.setenv("https_proxy", url)
        with pytest.raises(EncoderServerError, match="403"):
            remote("https://embeddings.invalid", token="secret").encode_documents(["x"])
    assert received[0].startswith(b"CONNECT embeddings.invalid:443 HTTP/1.")
    assert b"secret" not in received[0]


def test_where_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda request: [b"HTTP/1.1 403 No\r\n\r\n"]) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        with answering(models_and(VECTORS)) as (url, _):
            assert remote(url).encode_documents(["x"]).tolist() == [[1.0, 2.0]]
            assert remote(url.replace("127.0.0.1", "localhost")).encode_documents(["x"]).shape == (1, 2)
            monkeypatch.setenv("no_proxy", "127.0.0.2,.invalid")
            with pytest.raises(EncoderServerError, match="no answer"):
                remote("http://embeddings.invalid").encode_documents(["x"])
    assert asked == []


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1"])
def test_a_proxy_that_speaks_something_else(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(EncoderOptionError, match=r"the proxy of http URLs .* expected http://host:port"):
        remote("http://embeddings.invalid")
