"""/rerank as clients of TEI and of Cohere use it: what they send, what they read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pgembed.cli.main import app
from pgembed.encoders import Encoder, Reranker
from pgembed.encoders.serving import Server
from pgembed.exc import EncoderOptionError
from tests.unit.encoders.models import TEXTS
from tests.unit.encoders.wire import Wire, request, serving

QUERY = "How do I reset my password?"


@pytest.fixture(scope="module")
def reranker(scoring: Callable[[str], Path]) -> Reranker:
    return Reranker(scoring("bert"))


@pytest.fixture(scope="module")
def server(
    reranker: Reranker, scoring: Callable[[str], Path], tiny: Callable[[str], Path]
) -> Iterator[Server]:
    nli = Reranker(scoring("bert-nli"))
    with serving(Encoder(tiny("bert")), rerankers=[reranker, nli], texts=50) as running:
        yield running


def ask(server: Server, body: Any, path: str = "/rerank") -> tuple[int, Any]:
    with Wire(server) as wire:
        wire.send(request(body, path=path))
        status, _, answer = wire.answer()
    return status, answer


def expected(reranker: Reranker, **options: Any) -> list[tuple[int, float]]:
    scores = reranker.predict([(QUERY, text) for text in TEXTS], **options)
    return [(int(index), float(scores[index])) for index in np.argsort(-scores, kind="stable")]


def test_the_form_of_tei(server: Server, reranker: Reranker) -> None:
    status, answer = ask(server, {"query": QUERY, "texts": TEXTS, "truncate": True})
    assert status == 200
    assert [list(item) for item in answer] == [["index", "score"]] * len(TEXTS)
    wanted = expected(reranker)
    assert [item["index"] for item in answer] == [index for index, _ in wanted]
    assert [item["score"] for item in answer] == pytest.approx([score for _, score in wanted], abs=1e-6)
    status, raw = ask(server, {"query": QUERY, "texts": TEXTS, "raw_scores": True, "return_text": True})
    logits = dict(expected(reranker, activation="identity"))
    for item in raw:
        assert item["score"] == pytest.approx(logits[item["index"]], abs=1e-6)
        assert item["text"] == TEXTS[item["index"]]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_form_of_cohere(server: Server, reranker: Reranker, path: str) -> None:
    documents = [{"text": text} if number % 2 else text for number, text in enumerate(TEXTS)]
    body = {"model": "bert", "query": QUERY, "documents": documents, "top_n": 3, "return_documents": True}
    status, answer = ask(server, body, path)
    assert status == 200
    wanted = expected(reranker)[:3]
    assert [item["index"] for item in answer["results"]] == [index for index, _ in wanted]
    assert [item["relevance_score"] for item in answer["results"]] == pytest.approx(
        [score for _, score in wanted], abs=1e-6
    )
    assert [item["document"] for item in answer["results"]] == [{"text": TEXTS[index]} for index, _ in wanted]
    assert (answer["model"], answer["fingerprint"]) == ("bert", reranker.fingerprint)
    assert answer["usage"]["total_tokens"] > len(TEXTS) * 3
    assert answer["id"]
    plain = ask(server, {"query": QUERY, "documents": TEXTS}, path)[1]["results"]
    assert [list(item) for item in plain] == [["index", "relevance_score"]] * len(TEXTS)


def test_equal_scores_come_in_the_order_of_the_texts(server: Server) -> None:
    status, answer = ask(server, {"query": QUERY, "texts": ["same"] * 20})
    assert status == 200
    assert [item["index"] for item in answer] == list(range(20))


def test_requests_share_batches_and_get_their_own(server: Server, reranker: Reranker) -> None:
    bodies = [{"query": f"{QUERY} {number}", "texts": TEXTS[number % 5 :]} for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: ask(server, body), bodies))
    for body, (status, answer) in zip(bodies, answers, strict=True):
        scores = reranker.predict([(body["query"], text) for text in body["texts"]])
        assert status == 200
        assert {item["index"]: item["score"] for item in answer} == pytest.approx(
            dict(enumerate(scores.tolist())), abs=1e-5
        )


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"query": "a"}, 400, "documents", "needs texts (as TEI's) or documents"),
        ({"query": "a", "texts": ["b"], "documents": ["b"]}, 400, "texts", "and not both"),
        ({"texts": ["b"]}, 400, "query", "query must be a text"),
        ({"query": ["a"], "texts": ["b"]}, 400, "query", "query must be a text"),
        ({"query": "a", "texts": []}, 400, "texts", "at least one text"),
        ({"query": "a", "texts": "b"}, 400, "texts", "must be a list"),
        ({"query": "a", "texts": ["b", 7]}, 400, "texts", "text 1: found int, expected str"),
        ({"query": "a", "documents": [{"title": "b"}]}, 400, "documents", "text 0: found dict"),
        ({"query": "a", "texts": ["b"] * 51}, 413, "texts", "51 texts in one request; at most 50"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n", "at least 1"),
        ({"query": "a", "texts": ["b"], "raw_scores": "yes"}, 400, "raw_scores", "true or false"),
        ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 9}, 400, "max_tokens_per_doc", "40 tokens"),
        ({"query": "a", "texts": ["b"], "truncation_direction": "Left"}, 400, "truncation_direction", ""),
        ({"query": "a", "texts": ["c", "b " * 60], "truncate": False}, 413, "truncate", "1 of the pairs"),
        ({"query": "a", "texts": ["b"], "model": "bert-nli"}, 400, "model", "needs a model with one"),
        ({"query": "a", "texts": ["b"], "model": "tiny"}, 404, "model", "'tiny' for /rerank; there are bert"),
    ],
)
def test_what_is_refused(server: Server, body: Any, status: int, param: str, message: str) -> None:
    found, answer = ask(server, body)
    assert (found, answer["error"]["param"]) == (status, param)
    assert message in answer["error"]["message"]


def test_short_pairs_need_no_cutting(server: Server) -> None:
    assert ask(server, {"query": "a", "texts": ["b"], "truncate": False})[0] == 200


def test_each_endpoint_has_its_models(server: Server) -> None:
    status, answer = ask(server, {"input": "a", "model": "bert"}, "/v1/embeddings")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "for embeddings; there are tiny" in answer["error"]["message"]
    with Wire(server) as wire:
        wire.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        models = wire.answer()[2]["data"]
    assert [model["id"] for model in models] == ["tiny", "bert", "bert-nli"]
    assert models[2]["pgembed"]["labels"] == ["contradiction", "entailment", "neutral"]
    with Wire(server) as wire:
        wire.send(b"GET /rerank HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wire.answer()[0] == 405


def test_an_encoder_is_not_made_of_a_served_reranker(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    assert Encoder.remote(url).encode_documents(["a"]).shape == (1, 24)
    with pytest.raises(EncoderOptionError, match=r"open it with Reranker\("):
        Encoder.remote(url, model="bert").encode_documents(["a"])


def test_rerankers_alone_and_encoders_alone(reranker: Reranker, tiny: Callable[[str], Path]) -> None:
    body = {"query": "a", "texts": ["b"]}
    with serving(None, token="secret", rerankers=[reranker]) as running, Wire(running) as wire:
        wire.send(request(body, "Authorization: Bearer secret", path="/rerank"))
        assert wire.answer()[0] == 200
        wire.send(request(body, path="/rerank"))
        assert wire.answer()[0] == 401
    with serving(Encoder(tiny("bert"))) as running:
        status, answer = ask(running, body)
        assert (status, answer["error"]["message"]) == (404, "no model None for /rerank; there are none")
    with pytest.raises(EncoderOptionError, match="expected at least one, or a reranker"):
        Server([], port=0)
    with pytest.raises(EncoderOptionError, match="expected different names"):
        Server([], rerankers=[reranker, reranker], port=0)
    failed = CliRunner().invoke(app, ["serve"])
    assert failed.exit_code == 2
    assert "expected --encoder NAME or --reranker NAME" in failed.output
