"""Encoders elsewhere: the server, the client, and what each says when the other is not as it should be."""

from __future__ import annotations

import http.client
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.encoders import Encoder
from pgembed.encoders.serving import Limits, Server
from pgembed.exc import (
    EncoderError,
    EncoderOptionError,
    EncoderServerError,
    FingerprintMismatchError,
    TextError,
)


@pytest.fixture(scope="module")
def local(tiny: Callable[[str], Path]) -> Encoder:
    """A small encoder with prompts of its own."""
    return Encoder(tiny("xlm-roberta"))


def running(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def serving(server: Server) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(local: Encoder) -> Iterator[str]:
    with serving(Server([local], port=0, limits=Limits(body=100_000, texts=50))) as address:
        yield address


@pytest.fixture
def openai() -> Iterator[tuple[str, list[Any], list[Callable[[Any], Any]], list[Any]]]:
    """A server of another make: it answers with what the test puts into the lists."""
    received: list[Any] = []
    answers: list[Callable[[Any], Any]] = []
    models: list[Any] = [{"object": "list", "data": [{"id": "their-model"}]}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, models[-1])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append(body | {"authorization": self.headers.get("Authorization")})
            self.reply(*answers.pop(0)(body))

        def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(status)
            for header in (headers or {}).items():
                self.send_header(*header)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    for address in running(server):
        yield address, received, answers, models


def vectors(body: Any) -> tuple[int, Any]:
    data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
    return 200, {"data": data[::-1]}  # the index counts, not the order


def post(url: str, body: bytes | dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request("POST", "/v1/embeddings", content, headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


# --- pgembed serve and its client ---------------------------------------------------------------------


def test_remote_vectors_are_the_local_ones(local: Encoder, url: str) -> None:
    texts = [f"text {i}" for i in range(120)]  # more than the server takes at once
    with Encoder.remote(url, batch=50) as remote:
        assert isinstance(remote, Encoder)
        assert (remote.fingerprint, remote.dimensions) == (local.fingerprint, local.dimensions)
        assert np.abs(remote.encode_documents(texts) - local.encode_documents(texts)).max() < 1e-6
        assert np.abs(remote.encode_queries(["reset"]) - local.encode_queries(["reset"])).max() < 1e-6
        assert np.abs(remote.encode_queries(["reset"]) - remote.encode_documents(["reset"])).max() > 1e-3
        with pytest.raises(TextError, match="text 1"):
            remote.encode_documents(["a", None])  # type: ignore[list-item]


def test_stated_fingerprint(local: Encoder, url: str) -> None:
    right = Encoder.remote(url, fingerprint=local.fingerprint, dimensions=24, model="tiny")
    assert right.encode_documents(["x"]).shape == (1, 24)
    wrong = Encoder.remote(url, fingerprint="f" * 32, dimensions=24)
    with pytest.raises(FingerprintMismatchError) as caught:
        wrong.encode_documents(["x"])
    assert (caught.value.found, caught.value.stated) == (local.fingerprint, "f" * 32)
    with pytest.raises(EncoderOptionError, match="dimensions"):
        Encoder.remote(url, dimensions=7).encode_documents(["x"])
    with pytest.raises(EncoderOptionError, match="query_prompt"):
        Encoder.remote(url, query_prompt="q: ").encode_documents(["x"])


def test_declaring_needs_no_server() -> None:
    remote = Encoder.remote("http://127.0.0.1:9/v1", fingerprint="a" * 32, dimensions=24, retries=1)
    assert (remote.fingerprint, remote.dimensions) == ("a" * 32, 24)
    assert "http://127.0.0.1:9" in repr(remote)
    copied = pickle.loads(pickle.dumps(remote))
    assert (copied.fingerprint, copied.dimensions, repr(copied)) == ("a" * 32, 24, repr(remote))
    with pytest.raises(EncoderServerError, match=r"no answer .*pgembed serve"):
        remote.encode_documents(["x"])
    with pytest.raises(EncoderOptionError, match="http://host:port"):
        Encoder.remote("localhost:8080")


def test_many_clients(local: Encoder, url: str) -> None:
    remote = Encoder.remote(url, query_cache=0)
    texts = [f"question number {i}" for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        answers = np.concatenate(list(pool.map(lambda text: remote.encode_queries([text]), texts)))
    assert np.abs(answers - local.encode_queries(texts)).max() < 1e-5


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "is not JSON"),
        (b"[]", 400, "JSON object"),
        ({"model": "other", "input": "x"}, 404, "there are tiny"),
        ({"input": 7}, 400, "a text or a list"),
        ({"input": ["x", 7]}, 400, "text 1: found int"),
        ({"input": ["x"] * 51}, 413, "at most 50"),
        ({"input": "x" * 100_001}, 413, "at most 100000"),
        ({"input": "x", "input_type": "passage"}, 400, "document or query"),
        ({"input": "x", "encoding_format": "hex"}, 400, "base64"),
        ({"input": "x", "dimensions": 3}, 400, "must be 24"),
    ],
)
def test_refusals(url: str, body: bytes | dict[str, Any], status: int, message: str) -> None:
    found, answer = post(url, body)
    assert found == status
    assert message in answer["error"]["message"]


def test_what_is_cut_a_server_does_not_tell(url: str) -> None:
    with pytest.raises(EncoderOptionError, match="reports what it cuts"):
        Encoder.remote(url).count_cut(["a text"])


def test_openai_shape(local: Encoder, url: str) -> None:
    status, answer = post(url, {"model": "tiny", "input": "a text"})
    assert status == 200
    assert (answer["object"], answer["model"], answer["fingerprint"]) == ("list", "tiny", local.fingerprint)
    assert np.allclose(answer["data"][0]["embedding"], local.encode_documents(["a text"])[0], atol=1e-6)


def test_null_is_the_default(url: str) -> None:
    """Some clients name every option."""
    names = ("model", "encoding_format", "dimensions", "input_type", "user")
    assert post(url, {"input": "x"} | dict.fromkeys(names)) == post(url, {"input": "x"})


def test_every_encoder_needs_a_name_of_its_own(local: Encoder) -> None:
    with pytest.raises(EncoderOptionError, match="tiny, tiny"):
        Server([local, local], port=0)


def test_token(local: Encoder) -> None:
    with pytest.raises(EncoderOptionError, match="a token"):
        Server([local], host="0.0.0.0", port=0)
    with serving(Server([local], port=0, token="secret")) as url:
        assert post(url, {"input": "x"})[0] == 401
        assert post(url, {"input": "x"}, Authorization="Bearer secret")[0] == 200
        assert post(url, {"input": "x"}, Authorization="bearer secret")[0] == 200  # case does not count
        for wrong in ("secret", "Basic secret", "Bearer", "Bearer secre", "Bearer secret x"):
            assert post(url, {"input": "x"}, Authorization=wrong)[0] == 401
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status": "ok"}'
        connection.close()
        with pytest.raises(EncoderServerError, match="Pass the token") as caught:
            Encoder.remote(url, token="wrong").encode_documents(["x"])
        assert caught.value.status == 401
        assert Encoder.remote(url, token="secret").encode_documents(["x"]).shape == (1, 24)


# --- coalescing ---------------------------------------------------------------------------------------


# --- other servers ------------------------------------------------------------------------------------


def test_other_server(openai: Any) -> None:
    url, received, answers, _ = openai
    answers.append(vectors)
    remote = Encoder.remote(
        url + "/v1",
        model="their-model",
        fingerprint="mine-1",
        dimensions=2,
        document_prompt="doc: ",
        token="t",
    )
    assert remote.encode_documents(["abc", "a", "abc"]).tolist() == [[8, 1], [6, 1], [8, 1]]
    assert received[0]["input"] == ["doc: abc", "doc: a"]
    assert (received[0]["model"], received[0]["authorization"]) == ("their-model", "Bearer t")
    assert remote.fingerprint == "mine-1"


def test_other_server_tells_nothing(openai: Any) -> None:
    remote = Encoder.remote(openai[0])
    with pytest.raises(EncoderError, match="pass them"):
        remote.encode_documents(["x"])


def test_patience(openai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, received, answers, _ = openai
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    busy = lambda body: (503, {"error": {"message": "busy"}})  # noqa: E731
    remote = Encoder.remote(url, fingerprint="mine-1", dimensions=2, retries=2)
    answers += [busy, busy, vectors]
    assert remote.encode_documents(["abc"]).tolist() == [[3, 1]]
    assert pauses == [0.1, 0.2]
    answers += [busy, busy, busy]
    with pytest.raises(EncoderServerError, match="503: busy"):
        remote.encode_documents(["abc"])
    answers.append(lambda body: (400, {"error": {"message": "too long"}}))
    with pytest.raises(EncoderServerError, match="400: too long"):
        remote.encode_documents(["abc"])
    assert len(received) == 7  # a refusal is not repeated


def data(*items: Any) -> Callable[[Any], tuple[int, Any]]:
    return lambda body: (200, {"data": list(items)})


def item(index: object, *values: object) -> dict[str, object]:
    return {"index": index, "embedding": list(values)}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (data(), "0 vectors for 2 texts"),
        (data(item(0, 1.0), item(1, 1.0)), "1 dimensions, expected 2"),
        (lambda body: (200, []), "is not a JSON object"),
        (lambda body: (200, {"data": None}), "0 vectors for 2 texts"),
        (lambda body: (200, {"data": 3}), "something other than vectors"),
        (data(1, 2), "something other than vectors"),
        (data({"index": 0}, {"index": 1}), "something other than vectors"),
        (data({"embedding": [1.0, 2.0]}), "something other than vectors"),
        (data(item(0, 1.0, 2.0), item(0, 1.0, 2.0)), "1 vectors for 2 texts"),
        (data(item(1, 1.0, 2.0), item(2, 1.0, 2.0)), "numbered 1 to 2"),
        (data(item(-1, 1.0, 2.0), item(0, 1.0, 2.0)), "numbered -1 to 0"),
        (data(item("x", 1.0, 2.0), item(0, 1.0, 2.0)), "something other than vectors"),
        (data(item(0, float("nan"), 2.0), item(1, 1.0, 2.0)), "NaN"),
        (data(item(0, None, 2.0), item(1, 1.0, 2.0)), "NaN"),
        (data(item(0, [1.0], [2.0]), item(1, 1.0, 2.0)), "dimensions"),
        (data({"index": 0, "embedding": "AAAA"}, item(1, 1.0, 2.0)), "something other than vectors"),
        (data({"index": 0, "embedding": "~"}, item(1, 1.0, 2.0)), "0 dimensions"),
    ],
)
def test_strange_answers(openai: Any, answer: Callable[[Any], tuple[int, Any]], reason: str) -> None:
    url, _, answers, _ = openai
    answers.append(answer)
    with pytest.raises(EncoderServerError, match=reason):
        Encoder.remote(url, fingerprint="mine-1", dimensions=2).encode_documents(["abc", "d"])


def test_texts_of_one_request_are_bounded(openai: Any) -> None:
    """By their number, and by their characters, because servers limit the size of a request."""
    url, received, answers, _ = openai
    answers += [vectors] * 6
    remote = Encoder.remote(url, fingerprint="mine-1", dimensions=2, batch=3)
    texts = ["a" * length for length in (1, 2, 3, 4, 400_000, 400_001, 400_002, 2_000_000, 5)]
    assert remote.encode_documents(texts)[:, 0].tolist() == [len(text) for text in texts]
    assert [[len(text) for text in body["input"]] for body in received] == [
        [1, 2, 3],
        [4, 400_000, 400_001],
        [400_002],
        [2_000_000],
        [5],
    ]


def test_pause_that_a_server_asks_for(openai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept, but a day is not."""
    url, _, answers, _ = openai
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    answers.append(lambda body: (429, {}, {"Retry-After": "2"}))
    answers.append(lambda body: (429, {}, {"Retry-After": "86400"}))
    answers.append(vectors)
    remote = Encoder.remote(url, fingerprint="mine-1", dimensions=2, timeout=7)
    assert remote.encode_documents(["abc"]).tolist() == [[3, 1]]
    assert pauses == [2, 7]


def test_place_that_a_server_names(openai: Any) -> None:
    url, _, answers, _ = openai
    answers.append(lambda body: (307, {}, {"Location": "https://elsewhere/v1/embeddings"}))
    with pytest.raises(EncoderServerError, match=r"refused with 307.*It redirects to https://else"):
        Encoder.remote(url, fingerprint="mine-1", dimensions=2).encode_documents(["abc"])


@pytest.mark.parametrize("models", [{"data": {"id": "x"}}, {"data": ["x", None]}, {"data": None}, {}])
def test_other_lists_of_models(openai: Any, models: object) -> None:
    url, _, answers, told = openai
    told.append(models)
    answers.append(vectors)
    remote = Encoder.remote(url, fingerprint="mine-1", dimensions=2)
    assert remote.encode_documents(["abc"]).tolist() == [[3, 1]]


def test_a_restarted_server(local: Encoder) -> None:
    """Connections to the old one are dropped at once, however many there are; that is no failed try."""
    server = Server([local], port=0)
    port = server.server_port
    with serving(server) as url:
        remote = Encoder.remote(url, retries=0)
        with ThreadPoolExecutor(6) as pool:
            wait = threading.Barrier(6)
            list(pool.map(lambda i: (wait.wait(10), remote.encode_documents([f"{i}" * 50])), range(6)))
    with serving(Server([local], port=port)):
        assert remote.encode_documents(["there again"]).shape == (1, 24)


def test_server_with_another_encoder_by_now(local: Encoder, tiny: Callable[[str], Path]) -> None:
    """Found out with the first answer."""
    server = Server([local], port=0)
    port = server.server_port
    other = Encoder(tiny("bert"))
    assert (other.name, other.dimensions) == (local.name, local.dimensions)
    with serving(server) as url:
        remote = Encoder.remote(url)
        remote.encode_documents(["x"])
    with (
        serving(Server([other], port=port)),
        pytest.raises(FingerprintMismatchError, match="the encoder now at"),
    ):
        remote.encode_documents(["y"])


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://host:99999", {}),
        ("http://[::1", {}),
        ("ftp://host", {}),
        ("host:80", {}),
        ("http://host", {"batch": 0}),
        ("http://host", {"retries": -1}),
        ("http://host", {"timeout": 0}),
        ("http://host", {"token": "read from a file\n"}),
    ],
)
def test_impossible_options(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(EncoderOptionError):
        Encoder.remote(url, **options)
