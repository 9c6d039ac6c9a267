"""``POST /rerank``: what a request asks for, in the form of TEI or in that of Cohere, and its answer.

Clients of TEI send ``texts`` and read a list of ``index`` and ``score``; those of Cohere, Jina and vLLM send
``documents`` and read ``results`` of ``index`` and ``relevance_score``.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgembed.encoders.reranker import Reranker
from pgembed.encoders.serving.limits import RefusalError
from pgembed.encoders.text.texts import Counts, Pair, Vectors, checked_pairs
from pgembed.exc import TextError

#: Fields that would change which parts of the texts are read, and what they may be here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "max_tokens_per_doc": (),
    "max_chunks_per_doc": (),
    "rank_fields": (["text"],),
    "truncation_direction": ("Right", "right"),
}


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    :ivar of_tei: whether it is in TEI's form.
    :ivar most: how many texts come back.
    :ivar raw: whether logits are wanted instead of scores.
    :ivar with_text: whether the texts come back too.
    :ivar cutting: whether pairs that are too long may be cut.
    """

    pairs: list[Pair]
    of_tei: bool
    most: int
    raw: bool
    with_text: bool
    cutting: bool


def wished(body: dict[str, Any], reranker: Reranker, most: int) -> Wish:
    """What a body asks of a reranker.

    :param most: texts that are allowed.
    :raises RefusalError: a field has a wrong value, or the reranker has several labels.
    """
    if len(reranker.labels) > 1:
        message = (
            f"{reranker.name} has the labels {', '.join(reranker.labels)}; /rerank needs a model with one"
        )
        raise RefusalError(400, message, param="model")
    of_tei = "texts" in body
    field = "texts" if of_tei else "documents"
    if of_tei == ("documents" in body):
        raise _wrong(field, "the body needs texts (as TEI's) or documents (as Cohere's), and not both")
    for name, values in _FIXED.items():
        if name in body and body[name] not in values:
            raise _wrong(name, f"{name} is not supported: pairs are cut at {reranker.max_tokens} tokens")
    texts, query = _texts(body[field], field, most), body.get("query")
    if not isinstance(query, str):
        raise _wrong("query", "query must be a text")
    try:
        pairs = checked_pairs([(query, text) for text in texts])
    except TextError as error:
        raise _wrong(field, str(error)) from None
    top = body.get("top_n", len(texts))
    if type(top) is not int or top < 1:
        raise _wrong("top_n", "top_n must be a whole number of at least 1")
    return Wish(
        pairs,
        of_tei,
        most=min(top, len(texts)),
        raw=_flag(body, "raw_scores", False),
        with_text=_flag(body, "return_text" if of_tei else "return_documents", False),
        cutting=_flag(body, "truncate", True),
    )


def _texts(given: Any, field: str, most: int) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise _wrong(field, f"{field} must be a list of at least one text")
    if len(given) > most:
        message = f"{len(given)} texts in one request; at most {most} are allowed"
        raise RefusalError(413, message, param=field)
    return [item["text"] if isinstance(item, dict) and "text" in item else item for item in given]


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(name, f"{name} must be true or false")
    return value


def _wrong(param: str, message: str) -> RefusalError:
    return RefusalError(400, message, param=param)


def check_lengths(wish: Wish, reranker: Reranker) -> None:
    """
    :raises RefusalError: pairs are too long, and must not be cut.
    """
    count = reranker.count_cut(wish.pairs)
    if count:
        message = f"{count} of the pairs have more than {reranker.max_tokens} tokens, and truncate is false"
        raise RefusalError(413, message, param="truncate")


def document(wish: Wish, reranker: Reranker, logits: Vectors, counts: Counts) -> bytes:
    """The answer, best first; equal scores in the order of the texts."""
    scores = reranker.scores(logits, "identity" if wish.raw else None)
    order = np.argsort(-scores, kind="stable")[: wish.most].tolist()
    name = "score" if wish.of_tei else "relevance_score"
    results: list[dict[str, Any]] = [{"index": index, name: float(f"{scores[index]:.9g}")} for index in order]
    if wish.with_text:
        for item in results:
            text = wish.pairs[item["index"]][1]
            item |= {"text": text} if wish.of_tei else {"document": {"text": text}}
    if wish.of_tei:
        return json.dumps(results).encode()
    tokens = int(counts.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"id": str(uuid.uuid4()), "model": reranker.name, "results": results, "usage": usage}
    return json.dumps(answer | {"fingerprint": reranker.fingerprint}).encode()
