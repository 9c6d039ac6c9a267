"""A reranker whose scores a server computes: ``pgembed serve``, or any with TEI's or Cohere's /rerank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from pgembed.encoders.sources.client import Client
from pgembed.encoders.sources.remote import ANSWER, CHARACTERS, NUMBER, TEXT, Served, check_fingerprint
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Encoded, Kind, Vectors, pieces
from pgembed.exc import EncoderError, EncoderOptionError, EncoderServerError

Form: TypeAlias = Literal["cohere", "tei"]
FORMS = ("cohere", "tei")


class RemotePairs(Served):
    """A server as the source of a reranker; the arguments are those of :meth:`Reranker.remote`.

    :ivar reports: whether the server reports a spec, and gives logits.
    """

    pairs = True

    def __init__(
        self, url: str, *, form: Form | None, fingerprint: str | None, batch: int, **options: Any
    ) -> None:
        if form is not None and form not in FORMS:
            raise EncoderOptionError("form", form, needed=" or ".join(FORMS))
        if form is not None and fingerprint is not None:
            needed = "none: a server of another make reports none to compare it with"
            raise EncoderOptionError("fingerprint", fingerprint, needed=needed)
        super().__init__(url, fingerprint=fingerprint, batch=batch, **options)
        self.reports = form is None
        self._form: Form = form or "cohere"

    def spec(self) -> EncoderSpec:
        """The server's spec, compared with what was stated.

        :raises EncoderError: only the scores of the server are known.
        """
        if not self.reports:
            raise EncoderError(
                f"the server {self.label} is asked for scores alone (form=): it reports no spec"
            )
        return super().spec()

    def backend(self) -> _PairsBackend:
        """Connections to the server, once its spec has been compared with what was stated."""
        fingerprint = self.spec().fingerprint if self.reports else None
        return _PairsBackend(
            self._client(), self._model, self._form, batch=self._batch, fingerprint=fingerprint
        )

    def _unstated(self) -> EncoderError:
        return EncoderError(
            f"{self._url} reports no spec of a reranker: pass the form of its /rerank, "
            "Reranker.remote(url, form='tei') or form='cohere'"
        )


class _PairsBackend:
    """The backend: the texts of each query to the server in batches, scores back.

    :ivar fingerprint: that of the server's model, ``None`` if the server does not report it.
    """

    def __init__(
        self, client: Client, model: str | None, form: Form, *, batch: int, fingerprint: str | None
    ) -> None:
        self._client = client
        self._model = model
        self._form = form
        self._batch = batch
        self._fingerprint = fingerprint

    def encode(self, texts: Sequence[Any], kind: Kind) -> Encoded:  # noqa: ARG002
        """Logits of pairs of texts, or the scores of a server that reports no spec."""
        scores = np.empty((len(texts), 1), dtype=np.float32)
        by_query: dict[str, list[int]] = {}
        for number, (query, _) in enumerate(texts):
            by_query.setdefault(query, []).append(number)
        for query, numbers in by_query.items():
            documents = [texts[number][1] for number in numbers]
            lengths = [len(document) for document in documents]
            for start, end in pieces(lengths, count=self._batch, room=CHARACTERS):
                scores[numbers[start:end], 0] = self._scores(query, documents[start:end])
        return Encoded(scores, np.zeros(len(texts), dtype=np.int64), 0)

    def _scores(self, query: str, documents: list[str]) -> Vectors:
        body: dict[str, Any] = {"query": query}
        if self._model is not None:
            body["model"] = self._model
        if self._form == "tei":
            body |= {"texts": documents, "truncate": True}
        else:
            body |= {"documents": documents, "top_n": len(documents), "return_documents": False}
        if self._fingerprint is not None:
            body["raw_scores"] = True
        # Some servers send the texts back all the same, each character as an escape.
        most = len(documents) * (NUMBER + TEXT) + 12 * sum(map(len, documents)) + ANSWER
        path = "/rerank" if self._form == "tei" else "/v1/rerank"
        answer = self._client.ask("POST", path, body, array_allowed=self._form == "tei", most=most)
        check_fingerprint(answer, self._fingerprint, self._client.url)
        return self._read(answer, len(documents))

    def _read(self, answer: dict[str, Any], count: int) -> Vectors:
        items, name = ("data", "score") if self._form == "tei" else ("results", "relevance_score")
        try:
            found = {int(item["index"]): float(item[name]) for item in answer.get(items) or ()}
            scores = np.array([found.get(index, np.nan) for index in range(count)], dtype=np.float32)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            reason = f"an answer with something other than scores ({type(error).__name__}: {error})"
            raise EncoderServerError(self._client.url, reason, status=200) from error
        if len(found) != count or not np.isfinite(scores).all():
            finite = int(np.isfinite(scores).sum())
            reason = f"{finite} finite scores for {count} texts"
            raise EncoderServerError(self._client.url, reason, status=200)
        return scores
