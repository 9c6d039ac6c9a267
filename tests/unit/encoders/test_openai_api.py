"""The API as clients made for OpenAI's use it: what they send by default, and what they read in errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.serving import Server
from pgembed.exc import EncoderOptionError, TextError
from tests.unit.encoders.models import MODELS, edit
from tests.unit.encoders.wire import Wire, request, serving

NAME = "people/tiny model"


@pytest.fixture(scope="module")
def encoder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = shutil.copytree(tiny("bert"), tmp_path_factory.mktemp("api") / "tiny")
    edit(folder / "encoder.json", name=NAME)
    return Encoder(folder)


@pytest.fixture(scope="module")
def server(encoder: Encoder) -> Iterator[Server]:
    with serving(encoder) as running:
        yield running


def ask(server: Server, sent: bytes) -> tuple[int, dict[str, str], Any]:
    with Wire(server) as wire:
        wire.send(sent)
        return wire.answer()


def get(path: str, method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode()


# --- models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quoted", ["people/tiny%20model", "people%2Ftiny%20model", "people%2ftiny%20model?a=b"]
)
def test_one_model(server: Server, quoted: str) -> None:
    status, _, model = ask(server, get(f"/v1/models/{quoted}"))
    assert status == 200
    assert model == ask(server, get("/v1/models"))[2]["data"][0]
    assert (model["id"], model["object"], model["owned_by"]) == (NAME, "model", "pgembed")
    assert type(model["created"]) is int
    assert model["created"] > 1_700_000_000


@pytest.mark.parametrize("path", ["other", "people/", "people", "%00", "%ff", ""])
def test_no_such_model(server: Server, path: str) -> None:
    status, _, answer = ask(server, get(f"/v1/models/{path}"))
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["type"] == "invalid_request_error"
    assert NAME in error["message"]


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "input", "a text or a list of texts"),
        ({"input": []}, 400, "input", "at least one text"),
        ({"input": {}}, 400, "input", "a text or a list of texts"),
        ({"input": True}, 400, "input", "a text or a list of texts"),
        ({"input": ["a", 1]}, 400, "input", "text 1: found int"),
        ({"input": [1.5]}, 400, "input", "text 0: found float"),
        ({"input": [None]}, 400, "input", "text 0: found NoneType"),
        ({"input": "\ud800"}, 400, "input", "lone surrogate"),
        ({"input": ["a"] * 2049}, 413, "input", "at most 2048"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions", "must be 24"),
        ({"input": "a", "dimensions": 24.0}, 400, "dimensions", "must be 24"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "must be 24"),
        ({"input": "a", "encoding_format": ["float"]}, 400, "encoding_format", "float or base64"),
        ({"input": "a", "encoding_format": {}}, 400, "encoding_format", "float or base64"),
        ({"input": "a", "input_type": []}, 400, "input_type", "document or query"),
        ({"input": "a", "model": "x" * 10_000}, 404, "model", "no model 'xxx"),
        ({"input": "a", "model": ["x"]}, 404, "model", "no model ['x']"),
        (b'{"input": "a", "dimensions": NaN}', 400, None, "NaN is not a JSON number"),
        (b'{"input": "a", "dimensions": -Infinity}', 400, None, "-Infinity is not a JSON number"),
        (b'{"input": "a", "dimensions": 1e999}', 400, "dimensions", "must be 24"),
        (b'{"input": ' + b"9" * 5000 + b"}", 400, None, "is not JSON"),
        (b'{"input": ' + b"[" * 2000, 400, None, "is not JSON"),
        (b'{"input": ' + b"[" * 100_000, 400, None, "more lists"),
        (b'{"input": ' + b'{"a":' * 100_000, 400, None, "more lists"),
        (b'{"input": "\xff\xfe"}', 400, None, "is not JSON"),
        (b'{"input": [' + b"[]," * 100_000 + b"[]]}", 400, None, "more lists"),
        (b'{"input": [' + b"{}," * 100_000 + b"{}]}", 400, None, "more lists"),
        ({"input": "a"} | {f"field {i}": i for i in range(3000)}, 400, None, "more lists"),
        ('{"input": "a"}'.encode("utf-16"), 400, None, "is not JSON"),
        (b'{"input": "a"} {}', 400, None, "is not JSON"),
        (b"", 400, None, "is not JSON"),
        (b"\x00\x01\x02\x03", 400, None, "is not JSON"),
    ],
)
def test_errors_name_the_field(
    server: Server, body: Any, status: int, param: str | None, message: str
) -> None:
    found, headers, answer = ask(server, request(body))
    error = answer["error"]
    assert (found, error["param"], error["type"]) == (status, param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert len(error["message"]) < 500
    assert headers["Connection"] == "keep-alive"


def test_texts_may_look_like_json(server: Server) -> None:
    texts = ['{"a": [' * 5000, '\\"' * 5000 + "[{:" * 5000, "\\" * 4999]
    assert ask(server, request({"input": texts}))[0] == 200


def test_what_openai_sends(server: Server) -> None:
    """The fields of its Python client, those that are not given included."""
    body = {"model": NAME, "input": "x", "encoding_format": "base64", "user": "me", "dimensions": 24}
    status, _, answer = ask(server, request(body, "Authorization: Bearer none", "X-Stainless-Lang: python"))
    assert status == 200
    assert set(answer) >= {"object", "data", "model", "usage"}
    assert isinstance(answer["data"][0]["embedding"], str)


# --- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [[5, 6, 7], [[5, 6], [7]]])
def test_tokens_of_nobody_knows_whom(server: Server, tokens: Any) -> None:
    status, _, answer = ask(server, request({"input": tokens}))
    assert (status, answer["error"]["param"]) == (400, "input")
    assert "check_embedding_ctx_length=False" in answer["error"]["message"]
    assert f'"input_tokenizer": "{NAME}"' in answer["error"]["message"]


def test_tokens_of_the_model(server: Server, encoder: Encoder) -> None:
    texts = ["reset the password", "the printer is on fire"]
    plain = tokenizers.Tokenizer.from_file(str(MODELS / "bert" / "tokenizer.json"))
    plain.no_padding()
    tokens = [plain.encode(text).ids for text in texts]  # special tokens among them
    assert encoder.decode(tokens) == texts
    wanted = encoder.encode_documents(texts)
    for given, expected in ((tokens, wanted), (tokens[0], wanted[:1])):
        status, _, answer = ask(server, request({"input": given, "input_tokenizer": NAME}))
        assert status == 200
        vectors = np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)
        assert np.abs(vectors - expected).max() < 1e-6
    status, _, answer = ask(server, request({"input": "a text", "input_tokenizer": NAME}))
    assert status == 200  # texts remain texts


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2], [-1]], "text 1: found the token id -1, expected 0 to"),
        ([10**9], "text 0: found the token id 1000000000, expected 0 to"),
        ([[10**4000]], "a very large number"),
        ([[1], [True]], "text 1: found bool among"),
        ([True, False], "text 0: found bool"),
        ([[1, 2.0]], "text 0: found float among"),
        ([[1], []], "text 1: found no token ids"),
        ([[1], "a"], "text 1: found str"),
        (["a", [1]], "text 0: found str"),
        ([[1], 1], "text 1: found int"),
        ([[1], None], "text 1: found NoneType"),
        ([[[1]]], "text 0: found list among"),
        ([[{}]], "text 0: found dict among"),
    ],
)
def test_malformed_tokens(server: Server, tokens: Any, message: str) -> None:
    status, _, answer = ask(server, request({"input": tokens, "input_tokenizer": NAME}))
    assert (status, answer["error"]["param"]) == (400, "input")
    assert message in answer["error"]["message"]


@pytest.mark.parametrize("tokenizer", ["cl100k_base", "", 1, True, [], {"a": 1}])
def test_tokens_of_another_tokenizer(server: Server, tokenizer: Any) -> None:
    status, _, answer = ask(server, request({"input": [1, 2], "input_tokenizer": tokenizer}))
    assert (status, answer["error"]["param"]) == (400, "input_tokenizer")
    assert NAME in answer["error"]["message"]


def test_decoding_words(tmp_path: Path) -> None:
    folder = export_onnx(MODELS / "words", tmp_path / "words")
    encoder = Encoder(folder)
    text = encoder.decode([[0, 1]])[0]
    assert len(text.split()) == 2
    with pytest.raises(TextError, match="expected 0 to"):
        encoder.decode([[10**6]])
    with pytest.raises(EncoderOptionError, match="a server does not"):
        Encoder.remote("http://127.0.0.1:9").decode([[1]])


# --- methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/people%2Ftiny%20model"])
def test_heads_are_answers_without_their_bodies(server: Server, path: str) -> None:
    with Wire(server) as wire:
        wire.send(get(path, "HEAD") + get("/health"))
        head = wire.until(b"\r\n\r\n").decode()
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Length: 0" not in head
        assert wire.answer()[2] == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/embeddings", "POST"),
        ("HEAD", "/v1/embeddings", "POST"),
        ("PUT", "/v1/models/x", "GET"),
        ("DELETE", "/health", "GET"),
    ],
)
def test_methods_that_are_allowed_are_named(server: Server, method: str, path: str, allowed: str) -> None:
    with Wire(server) as wire:
        wire.send(get(path, method) + get("/health"))
        head = wire.until(b"\r\n\r\n").decode()
        assert head.startswith("HTTP/1.1 405 ")
        assert f"Allow: {allowed}" in head.split("\r\n")
        if method != "HEAD":
            wire.until(b"}}")
        assert wire.answer()[0] == 200


def test_what_clients_would_rather_speak(server: Server) -> None:
    """Java and curl offer HTTP/2, a client of proxies names the host."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert ask(server, request({"input": "x"}, *upgrade))[0] == 200
    assert ask(server, get("http://localhost:8817/health"))[0] == 200
    assert ask(server, get("/health", version="1.0"))[0] == 200
