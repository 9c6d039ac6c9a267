"""Pairs of texts to scores: a cross-encoder reads both texts at once, and judges better than two vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.encoders.shared import SharedModel
from pgembed.encoders.sources import Source
from pgembed.encoders.sources.local import Local, as_path
from pgembed.encoders.spec import ACTIVATIONS
from pgembed.encoders.text.texts import Counts, Kind, Pair, Vectors, checked_pairs, distinct
from pgembed.encoders.threads import encoder_errors, in_thread
from pgembed.exc import EncoderOptionError

if TYPE_CHECKING:
    from pgembed.encoders.sources.remote_pairs import Form


class Reranker(SharedModel):
    """Pairs of texts to scores, with a cross-encoder: a sequence classifier.

    Made like an :class:`Encoder`, of a folder that :func:`export_onnx` has written, and looked up like one:
    ``Reranker("ms-marco-MiniLM-L6-v2")``. The constructor reads the spec; weights are opened by the first
    call that computes something. It is safe to use from several threads, and after a fork.

    :param name_or_path: a name, or a path (anything with a separator in it), made absolute at once.
    :param device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if one can be used.
    :param precision: ``"auto"`` is float32 on the CPU and float16 on CUDA; ``"int8"`` is for the CPU.
    :param max_tokens: cut pairs at this many tokens instead of the model's own limit.
    :param activation: what makes scores of logits, instead of the model's own: ``"sigmoid"``, ``"identity"``,
        or ``"softmax"`` over the labels.
    :param fingerprint: the fingerprint that the model must have.
    :param threads: threads of the runtime; by default what affinity and cgroup allow.
    :raises EncoderNotFoundError: no model of that name or at that path.
    :raises EncoderFilesError: its spec cannot be read.
    :raises EncoderOptionError: an option has a value that the model cannot take, or the model encodes texts.
    :raises FingerprintMismatchError: the model found has another fingerprint than the one stated.
    """

    noun = "reranker"

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        max_tokens: int | None = None,
        activation: str | None = None,
        fingerprint: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._begin(
            Local(
                given=str(name_or_path),
                path=as_path(name_or_path),
                fingerprint=fingerprint,
                options={
                    "dimensions": None,
                    "max_tokens": max_tokens,
                    "activation": activation,
                    "precision": "int8" if precision == "int8" else None,
                },
                device=device,
                precision=precision,
                threads=threads,
                pairs=True,
            )
        )

    @classmethod
    def remote(
        cls,
        url: str,
        *,
        model: str | None = None,
        form: Form | None = None,
        fingerprint: str | None = None,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        batch: int = 32,
    ) -> Reranker:
        """A reranker whose scores a server computes: ``pgembed serve``, or another with ``/rerank``.

        ``pgembed serve`` reports the model's spec and gives logits, so a URL is enough, and ``activation=``
        works. Of other servers, only the scores are known, as they send them: :attr:`labels` is empty, and
        there is no fingerprint. The first use contacts the server, this does not. The server has to have a
        model with one label.

        :param url: such as ``http://127.0.0.1:8817``, with or without ``/v1``.
        :param model: the model's name on the server; the first reranker by default.
        :param form: of another server: ``"tei"`` for ``/rerank`` as of Hugging Face's
            text-embeddings-inference, ``"cohere"`` for ``/v1/rerank`` as of Cohere, Jina and vLLM.
        :param fingerprint: what the model must have.
        :param token: sent as ``Authorization: Bearer``.
        :param timeout: seconds for a whole answer, at each attempt.
        :param retries: how often a request is repeated when the server is not there, or busy.
        :param batch: texts of one request; TEI takes 32 unless it is told otherwise.
        :raises EncoderOptionError: the URL is not one, or another argument has a wrong value.
        """
        from pgembed.encoders.sources.remote_pairs import RemotePairs

        source = RemotePairs(
            url,
            model=model,
            form=form,
            fingerprint=fingerprint,
            token=token,
            timeout=timeout,
            retries=retries,
            batch=batch,
        )
        return _made(cls, source)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels: one for relevance, such as ``"LABEL_0"``; several of a classifier."""
        return self.spec.labels if self._source.reports else ()

    def predict(self, pairs: Iterable[Pair], *, activation: str | None = None) -> Vectors:
        """Scores of pairs of texts, higher for those that belong together.

        Pairs longer than :attr:`max_tokens` are cut, the longer text first, as ``CrossEncoder`` of
        sentence-transformers does it. Equal pairs are scored once.

        :param pairs: any number of (query, text); empty strings are texts too.
        :param activation: instead of the model's own; ``"identity"`` gives the logits.
        :returns: float32 of shape ``(len(pairs),)``, or ``(len(pairs), len(labels))`` where there are several
            labels, in the order of ``pairs``.
        :raises TextError: something is not a pair of strings; it names the position.
        :raises EncoderNotFoundError: the weights are not on this machine.
        :raises EncoderFilesError: the model's files are damaged.
        """
        return self.scores(self.encode_counted(checked_pairs(pairs))[0], activation)

    async def apredict(self, pairs: Iterable[Pair], *, activation: str | None = None) -> Vectors:
        """As :meth:`predict`, on another thread, so that the event loop keeps running."""
        return await in_thread(self.predict, list(pairs), activation=activation)

    def encode_counted(self, pairs: list[Pair], kind: Kind = "document") -> tuple[Vectors, Counts]:
        """The logits of checked pairs, float32 of shape (pairs, labels), and the tokens of each pair."""
        if not pairs:
            return np.empty((0, len(self.labels) or 1), dtype=np.float32), np.empty(0, dtype=np.int64)
        different, inverse = distinct(pairs)
        with encoder_errors(self.name):
            encoded = self._opened().encode(different, kind)
        with self._lock:
            self._cut += encoded.cut
        return encoded.vectors[inverse], encoded.counts[inverse]

    def scores(self, logits: Vectors, activation: str | None = None) -> Vectors:
        """The scores that logits of shape (pairs, labels) stand for, in the shape of :meth:`predict`.

        :raises EncoderOptionError: no activation of that name, or softmax over a single label; any of them,
            where a server gives scores and no logits.
        """
        if not self._source.reports:
            if activation is not None:
                needed = "none: the server gives scores, not logits"
                raise EncoderOptionError("activation", activation, needed=needed)
            return logits[:, 0]
        activation = self.spec.activation if activation is None else activation
        if activation not in ACTIVATIONS or (activation == "softmax" and len(self.labels) == 1):
            needed = " or ".join(ACTIVATIONS if len(self.labels) > 1 else ACTIVATIONS[:2])
            raise EncoderOptionError("activation", activation, needed=needed)
        scores = logits
        if activation == "sigmoid":
            small = np.exp(-np.abs(logits))  # never overflows
            scores = np.where(logits >= 0, 1, small) / (1 + small)
        elif activation == "softmax":
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        return scores[:, 0] if len(self.labels) == 1 else scores

    def count_cut(self, pairs: Iterable[Pair]) -> int:
        """How many of these pairs are longer than :attr:`max_tokens`: opens the tokenizer, no weights.

        :raises TextError: something is not a pair of strings.
        """
        return self._source.tokenizer()(checked_pairs(pairs)).cut

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._source)


def _made(kind: type[Reranker], source: Source) -> Reranker:
    """A reranker from any source."""
    reranker = kind.__new__(kind)
    reranker._begin(source)
    return reranker
