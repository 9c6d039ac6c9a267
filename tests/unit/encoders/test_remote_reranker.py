"""Rerankers whose scores a server computes: pgembed's own, and servers of the forms of TEI and of Cohere."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgembed.encoders import Encoder, Reranker
from pgembed.exc import (
    EncoderError,
    EncoderOptionError,
    EncoderServerError,
    FingerprintMismatchError,
    TextError,
)
from tests.unit.encoders.models import PAIRS, TEXTS
from tests.unit.encoders.test_hostile_servers import CHUNKED, MUCH, OK, always, answering, slowly
from tests.unit.encoders.wire import serving


@pytest.fixture(scope="module")
def local(scoring: Callable[[str], Path]) -> Reranker:
    return Reranker(scoring("bert"))


@pytest.fixture(scope="module")
def url(local: Reranker, scoring: Callable[[str], Path], tiny: Callable[[str], Path]) -> Iterator[str]:
    rerankers = [local, Reranker(scoring("bert-nli"))]
    with serving(Encoder(tiny("bert")), rerankers=rerankers) as server:
        yield f"http://127.0.0.1:{server.server_port}"


# --- pgembed serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_scores_are_those_of_the_model(url: str, local: Reranker, batch: int) -> None:
    with Reranker.remote(url + "/v1/", batch=batch) as remote:
        pairs = PAIRS + [(query, text) for query in TEXTS[:3] for text in TEXTS]
        scores = remote.predict(pairs)
        assert scores.dtype == np.float32
        assert scores.shape == (len(pairs),)
        assert np.allclose(scores, local.predict(pairs), atol=1e-5)
        logits = remote.predict(pairs, activation="identity")
        assert np.allclose(logits, local.predict(pairs, activation="identity"), atol=1e-5)
        assert np.allclose(asyncio.run(remote.apredict(pairs)), scores, atol=1e-6)
        assert remote.predict([]).shape == (0,)
        with pytest.raises(TextError):
            remote.predict([("a", None)])  # type: ignore[list-item]
    with pytest.raises(EncoderError, match="is closed"):
        remote.predict(pairs)


def test_what_it_knows_is_what_the_server_reports(url: str, local: Reranker) -> None:
    for remote in (Reranker.remote(url), Reranker.remote(url, model="bert", fingerprint=local.fingerprint)):
        assert (remote.labels, remote.fingerprint) == (local.labels, local.fingerprint)
        assert (remote.spec, remote.name, remote.max_tokens) == (local.spec, "bert", local.max_tokens)
        again = pickle.loads(pickle.dumps(remote))
        assert np.allclose(again.predict(PAIRS[:4]), local.predict(PAIRS[:4]), atol=1e-5)
    assert repr(Reranker.remote(url, model="bert")) == f"<Reranker at {url}, model='bert'>"
    with pytest.raises(EncoderOptionError, match="a server does not"):
        remote.count_cut(PAIRS)


def test_models_that_it_cannot_use_are_refused(url: str, local: Reranker) -> None:
    with pytest.raises(EncoderOptionError, match=r"encodes texts: open it with Encoder\("):
        Reranker.remote(url, model="tiny").predict(PAIRS)
    with pytest.raises(EncoderServerError, match="has the labels contradiction, entailment, neutral"):
        Reranker.remote(url, model="bert-nli").predict(PAIRS)
    with pytest.raises(FingerprintMismatchError, match=local.fingerprint):
        Reranker.remote(url, fingerprint="0" * 32).predict(PAIRS)
    with pytest.raises(EncoderOptionError, match=r"scores pairs of texts: open it with Reranker\("):
        Encoder.remote(url, model="bert").encode_documents(["x"])
    with pytest.raises(EncoderError, match=r"form='tei'\) or form='cohere'"):
        Reranker.remote(url, model="another").predict(PAIRS)


def test_a_token(local: Reranker) -> None:
    with serving(None, token="secret", rerankers=[local]) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        assert Reranker.remote(url, token="secret").predict(PAIRS).shape == (len(PAIRS),)
        with pytest.raises(EncoderServerError, match="Pass the token"):
            Reranker.remote(url).predict(PAIRS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "bert"}, "http://host:port"),
        ({"form": "jina"}, "cohere or tei"),
        ({"form": "tei", "fingerprint": "x"}, "fingerprint"),
        ({"batch": 0}, "batch"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"token": "é"}, "token"),
    ],
)
def test_options_that_it_cannot_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderOptionError, match=message):
        Reranker.remote(**{"url": "http://127.0.0.1:1"} | options)


# --- other servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tei", "cohere"])
def test_of_other_servers_the_scores_are_known(url: str, local: Reranker, form: Any) -> None:
    remote = Reranker.remote(url, form=form)
    assert np.allclose(remote.predict(PAIRS), local.predict(PAIRS), atol=1e-5)
    assert remote.labels == ()
    assert remote.predict([]).shape == (0,)
    with pytest.raises(EncoderOptionError, match="the server gives scores, not logits"):
        remote.predict(PAIRS, activation="identity")
    with pytest.raises(EncoderError, match="it reports no spec"):
        _ = remote.fingerprint


def answers(*items: Any, list_of: str | None = None, status: str = "200 OK", head: str = "") -> bytes:
    content = json.dumps(list(items) if list_of is None else {list_of: list(items)}).encode()
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_what_is_sent_in_the_form_of_tei() -> None:
    busy = iter([answers(status="503 Busy", head="Retry-After: 0\r\n")])
    answer = answers({"index": 1, "score": 0.5}, {"index": 0, "score": 0.25, "text": "a"})
    with answering(lambda request: [next(busy, answer)]) as (url, received):
        remote = Reranker.remote(url, form="tei", model="m", token="secret", batch=2)
        assert remote.predict([("q", "a"), ("q", "b"), ("r", "a"), ("r", "b")]).tolist() == [0.25, 0.5] * 2
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in received), strict=True)
    assert [head.split(b"\r\n")[0] for head in heads] == [b"POST /rerank HTTP/1.1"] * 3
    assert all(b"Authorization: Bearer secret" in head for head in heads)
    sent = {"query": "q", "model": "m", "texts": ["a", "b"], "truncate": True}
    assert [json.loads(body) for body in bodies] == [sent, sent, sent | {"query": "r"}]


def test_what_is_sent_in_the_form_of_cohere() -> None:
    answer = answers({"index": 0, "relevance_score": 2, "document": {"text": "é" * 500}}, list_of="results")
    with answering(lambda request: [answer]) as (url, received):
        assert Reranker.remote(url, form="cohere").predict([("q", "é" * 500)]).tolist() == [2.0]
    head, body = received[0].split(b"\r\n\r\n", 1)
    assert head.startswith(b"POST /v1/rerank HTTP/1.1")
    assert json.loads(body) == {"query": "q", "documents": ["é" * 500], "top_n": 1, "return_documents": False}


@pytest.mark.parametrize("form", ["tei", "cohere"])
@pytest.mark.parametrize(
    "content",
    [
        b"1",
        b"{}",
        b"[]",
        b'{"results": {"index": 0}}',
        b'{"results": true}',
        b'ITEMS {"index": 0}',
        b'ITEMS {"index": 0, "score": "high"}',
        b'ITEMS {"index": 0, "score": null}',
        b'ITEMS {"index": 0, "score": NaN}',
        b'ITEMS {"index": 0, "score": 1e999}',
        b'ITEMS {"index": 1, "score": 1}',
        b'ITEMS {"index": 1e999, "score": 1}',
        b'ITEMS {"index": 0, "score": 1}, {"index": 1, "score": 1}',
        b'ITEMS "xy"',
    ],
)
def test_answers_with_something_else_in_them(form: Any, content: bytes) -> None:
    if content.startswith(b"ITEMS"):
        items = content.removeprefix(b"ITEMS")
        content = b"[" + items + b"]"
        if form == "cohere":
            content = b'{"results": ' + content.replace(b'"score"', b'"relevance_score"') + b"}"
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(content) + content
    with answering(lambda request: [answer]) as (url, _), pytest.raises(EncoderServerError):
        Reranker.remote(url, form=form, retries=0).predict([("q", "a")])


@pytest.mark.parametrize(
    ("answer", "message", "timeout"),
    [
        (always(CHUNKED, b"10000\r\n" + MUCH + b"\r\n"), "an answer of more than", 20),
        (always(OK + b"Content-Length: 99999999999\r\n\r\n", MUCH), "an answer of more than", 20),
        (slowly(OK + b"Content-Length: 50000\r\n\r\n", b"["), "no answer", 0.3),
        (lambda request: [b"HTTP/1.1 422 No\r\n\r\n{}"], "refused with 422", 20),
    ],
)
def test_an_answer_is_bounded(
    answer: Callable[[bytes], Iterable[bytes]], message: str, timeout: float
) -> None:
    with answering(answer) as (url, _), pytest.raises(EncoderServerError, match=message):
        Reranker.remote(url, form="tei", retries=0, timeout=timeout).predict([("q", "a")])


def test_another_model_at_the_same_place_is_noticed(local: Reranker, scoring: Callable[[str], Path]) -> None:
    """Between two requests the server may have been started again with another one."""
    told = {"data": [{"id": "bert", "pgembed": local.spec.document()}]}
    items = [{"index": 0, "relevance_score": 1.0}]

    def answer(request: bytes) -> list[bytes]:
        content = told if request.startswith(b"GET") else {"results": items, "fingerprint": "f" * 32}
        body = json.dumps(content).encode()
        return [OK + b"Content-Length: %d\r\n\r\n" % len(body) + body]

    with answering(answer) as (url, received), pytest.raises(FingerprintMismatchError, match="now at"):
        Reranker.remote(url, retries=0).predict([("q", "a")])
    assert b'"raw_scores": true' in received[-1]
