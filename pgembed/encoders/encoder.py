"""The encoder as users hold it: cheap to make, opened at first use, shared by threads, safe over forks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from pgembed.encoders.onnx.runtime import OnnxRuntime
from pgembed.encoders.shared import SharedModel
from pgembed.encoders.sources import Source
from pgembed.encoders.sources.local import Local, as_path
from pgembed.encoders.spans import check_spec, checked_spans, encode
from pgembed.encoders.text.texts import (
    Counts,
    Kind,
    RecentVectors,
    Vectors,
    checked,
    checked_ids,
    distinct,
    repeated,
)
from pgembed.encoders.text.tokenizer import AnyTokenizer, Tokenizer
from pgembed.encoders.threads import encoder_errors, in_thread
from pgembed.exc import EncoderOptionError


class Encoder(SharedModel):
    """Texts to vectors.

    The constructor reads one small file, the encoder's spec, so encoders can be module constants next to
    the models that use them. Weights are looked up and opened by the first call that computes something; a
    machine that only migrates or builds statements needs none. After a fork the child opens its own session.

    ``Encoder("all-MiniLM-L6-v2")`` looks into the folders of ``PGEMBED_ENCODERS`` and the user's data folder;
    ``Encoder("./encoders/minilm")`` and ``Encoder(Path(...))`` are paths, of a folder or of a spec alone
    (``encoder.json``, whose weights are then found by the name in it).
    ``Encoder("minilm", fingerprint="...", dimensions=384)`` reads nothing at all until it is used.

    :param name_or_path: a name, or a path (anything with a separator in it), made absolute at once.
    :param device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if one can be used.
    :param precision: ``"auto"`` is float32 on the CPU and float16 on CUDA, one class of vectors; ``"int8"``
        (on the CPU, about 1 % less exact) has a fingerprint of its own.
    :param dimensions: keep the first N dimensions, for models trained for that (Matryoshka).
    :param max_tokens: cut texts at this many tokens instead of the model's own limit.
    :param query_prompt: put before queries instead of the model's own prompt.
    :param document_prompt: put before documents instead of the model's own prompt.
    :param fingerprint: the fingerprint that the vectors must have. Checked against the spec, or, together
        with ``dimensions``, taken on trust until something has to be encoded.
    :param threads: threads of the runtime; by default what affinity and cgroup allow.
    :param query_encoder: another encoder, by name, path or itself, for the queries of models with two towers.
        It must share the vector space; the fingerprint remains that of the documents.
    :param query_cache: how many vectors of queries are remembered, 0 for none.
    :raises EncoderNotFoundError: no encoder of that name or at that path.
    :raises EncoderFilesError: its spec cannot be read.
    :raises EncoderOptionError: an option has a value that the encoder cannot take.
    :raises FingerprintMismatchError: the encoder found has another fingerprint than the one stated.
    """

    noun = "encoder"

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        dimensions: int | None = None,
        max_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        fingerprint: str | None = None,
        threads: int | None = None,
        query_encoder: str | os.PathLike[str] | Encoder | None = None,
        query_cache: int = 1024,
    ) -> None:
        source = Local(
            given=str(name_or_path),
            path=as_path(name_or_path),
            fingerprint=fingerprint,
            options={
                "dimensions": dimensions,
                "max_tokens": max_tokens,
                "query_prompt": query_prompt,
                "document_prompt": document_prompt,
                "precision": "int8" if precision == "int8" else None,
            },
            device=device,
            precision=precision,
            threads=threads,
        )
        if query_encoder is not None and not isinstance(query_encoder, Encoder):
            query_encoder = Encoder(query_encoder, device=device, precision=precision, threads=threads)
        self._start(source, query_encoder, query_cache)
        if query_encoder is not None and query_encoder.dimensions != self.dimensions:
            found = f"one of {query_encoder.dimensions} dimensions"
            raise EncoderOptionError("query_encoder", found, needed=f"{self.dimensions} dimensions")

    @classmethod
    def remote(
        cls,
        url: str,
        *,
        model: str | None = None,
        fingerprint: str | None = None,
        dimensions: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        batch: int = 256,
        query_cache: int = 1024,
    ) -> Encoder:
        """An encoder whose vectors a server computes: ``pgembed serve``, or any with OpenAI's embeddings API.

        ``pgembed serve`` reports the encoder's spec, so a URL is enough; the first use contacts the server,
        this does not. With ``fingerprint`` and ``dimensions``, declaring models and migrating need no server
        at all; the fingerprint is compared with the server's before the first vector. Other servers report no
        fingerprint: pass one (any string of your own; change it when the server's model changes), the
        dimensions, and the prompts.

        :param url: such as ``http://127.0.0.1:8817``, with or without ``/v1``.
        :param model: the model's name on the server; the first one by default.
        :param fingerprint: what the vectors of documents must have.
        :param dimensions: dimensions of the vectors.
        :param query_prompt: put before queries, for servers that put nothing there themselves.
        :param document_prompt: put before documents, for such servers.
        :param token: sent as ``Authorization: Bearer``.
        :param timeout: seconds for a whole answer, at each attempt.
        :param retries: how often a request is repeated when the server is not there, or busy.
        :param batch: texts of one request.
        :param query_cache: how many vectors of queries are remembered.
        :raises EncoderOptionError: the URL is not one.
        """
        from pgembed.encoders.sources.remote import Remote

        source = Remote(
            url,
            model=model,
            fingerprint=fingerprint,
            dimensions=dimensions,
            prompts={"query": query_prompt, "document": document_prompt},
            token=token,
            timeout=timeout,
            retries=retries,
            batch=batch,
        )
        return _made(cls, source, None, query_cache)

    def _start(self, source: Source, query_encoder: Encoder | None, query_cache: int) -> None:
        """Set what describes an encoder; nothing else of it is copied or pickled."""
        if query_cache < 0:
            raise EncoderOptionError("query_cache", query_cache, needed="0 or more")
        self._query_cache = query_cache
        self._query_encoder = self._given_query_encoder = query_encoder
        self._tower_sought = False
        self._tokenizer: AnyTokenizer | None = None
        self._recent = RecentVectors(query_cache)
        self._begin(source)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        """Dimensions of the vectors."""
        stated = self._source.dimensions
        return self.spec.dimensions if stated is None else stated

    def _shown(self) -> list[str]:
        shown = super()._shown()
        if self._spec is not None or self._source.dimensions is not None:
            shown.insert(1, f"dimensions={self.dimensions}")
        return shown

    # --- what it does -----------------------------------------------------------------------------

    def encode_documents(self, texts: Iterable[str]) -> Vectors:
        """Vectors of texts that are stored and searched.

        Texts longer than :attr:`max_tokens` are cut. Equal texts are encoded once.

        :param texts: any number of strings; empty ones are texts too.
        :returns: float32 of shape ``(len(texts), dimensions)``, in the order of ``texts``.
        :raises TextError: something is not a string; it names the position.
        :raises EncoderNotFoundError: the weights are not on this machine.
        :raises EncoderFilesError: the encoder's files are damaged.
        """
        return self.encode_counted(texts, "document")[0]

    def encode_queries(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_documents`, for texts to search with: the prompt is that of queries.

        The vectors of recent queries are remembered.
        """
        return self.encode_counted(texts, "query")[0]

    def encode_counted(self, texts: Iterable[str], kind: Kind) -> tuple[Vectors, Counts]:
        """The vectors of documents or queries, and the number of tokens of each text.

        Tokens are counted as they were encoded: with prompt and special tokens, and nothing beyond the limit.
        A remote encoder counts 0, since only the server knows.
        """
        wanted = checked(texts)
        if not wanted:
            return np.empty((0, self.dimensions), dtype=np.float32), np.empty(0, dtype=np.int64)
        if kind == "document":
            return self._encode(wanted, kind)
        tower = self._query_encoder if self._tower_sought else self._seek_tower()
        if tower is not None:
            return tower.encode_counted(wanted, kind)
        return self._recent.through(wanted, lambda missing: self._encode(missing, kind), self.dimensions)

    def count_cut(self, texts: Iterable[str]) -> int:
        """How many of these documents are longer than :attr:`max_tokens`: opens the tokenizer, no weights.

        :raises TextError: something is not a string.
        :raises EncoderNotFoundError: the tokenizer is not on this machine.
        :raises EncoderOptionError: the encoder is remote.
        """
        prompt = self.spec.document_prompt
        return self._source.tokenizer()([prompt + text for text in checked(texts)]).cut

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """The texts that tokens of this encoder mean: opens the tokenizer, no weights.

        Special tokens are left out, and what a tokenizer does not keep (case, blanks) does not come back.

        :param ids: a list of token ids for each text.
        :raises TextError: something is not a list of ids, or an id does not exist; it names the position.
        :raises EncoderNotFoundError: the tokenizer is not on this machine.
        :raises EncoderOptionError: the encoder is remote.
        """
        tokenizer = self._whole_tokenizer()
        return tokenizer.decode(checked_ids(ids, tokenizer.highest_id))

    def count_tokens(self, texts: Iterable[str]) -> Counts:
        """Tokens of each of these documents, with prompt and special tokens: opens the tokenizer, no weights.

        Nothing is cut: of a text beyond :attr:`max_tokens` all tokens are counted.

        :returns: int64 of shape ``(len(texts),)``.
        :raises TextError: something is not a string.
        :raises EncoderNotFoundError: the tokenizer is not on this machine.
        :raises EncoderOptionError: the encoder is remote.
        """
        tokenizer, prompt = self._whole_tokenizer(), self.spec.document_prompt
        return tokenizer([prompt + text for text in checked(texts)]).lengths

    def _whole_tokenizer(self) -> AnyTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._source.tokenizer(whole=True)
            return self._tokenizer

    def _seek_tower(self) -> Encoder | None:
        """The encoder for queries: the given one, or one that comes with this encoder, or none."""
        with self._lock:
            self._check_open()
            source = None if self._query_encoder is not None else self._source.tower()
            if source is not None:
                self._query_encoder = _made(Encoder, source, None, self._query_cache)
            self._tower_sought = True
            return self._query_encoder

    def encode_spans(self, texts: Iterable[str], spans: Iterable[Iterable[tuple[int, int]]]) -> list[Vectors]:
        """Vectors of parts of documents, made of tokens that have read all of the document (late chunking).

        The vector of a span is the mean of the vectors of its tokens, normalised as the encoder's are; a
        single span over a whole text within the limit has the vector that :meth:`encode_documents` gives. A
        longer text is read in windows of :attr:`max_tokens` tokens, of which a quarter or more is in the one
        before too; each token's vector comes from the window with more around it. Windows that no span is in
        are not read.

        :param texts: any number of strings.
        :param spans: for each text the first character of each span and the one after its last, in any order;
            they may overlap. A token is of the span that has its last character.
        :returns: for each text float32 of shape ``(its spans, dimensions)``, in the order of the spans.
        :raises TextError: something is not a string, or a span is not inside of its text.
        :raises EncoderOptionError: the encoder does not pool by the mean alone, was exported by an older
            pgembed, or is remote.
        :raises EncoderNotFoundError: the weights are not on this machine.
        :raises EncoderFilesError: the encoder's files are damaged.
        """
        wanted = checked(texts)
        listed = checked_spans(wanted, spans)
        check_spec(self.spec)
        with encoder_errors(self.name):
            backend = self._opened()
            if not isinstance(backend, OnnxRuntime):
                needed = "one on this machine: a server gives no vectors of tokens"
                raise EncoderOptionError("encoder", self._source.label, needed=needed)
            tokenizer = cast("Tokenizer", self._whole_tokenizer())  # that of all transformers
            return encode(wanted, listed, self.spec, tokenizer, backend.token_vectors)

    def check_spans(self) -> None:
        """Check that :meth:`encode_spans` can be used, as far as what has been read of the encoder says.

        :raises EncoderOptionError: as of :meth:`encode_spans`.
        """
        if self._spec is not None:
            check_spec(self._spec)

    async def aencode_documents(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_documents`, on another thread, so that the event loop keeps running."""
        return await in_thread(self.encode_documents, list(texts))

    async def aencode_queries(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_queries`, on another thread, so that the event loop keeps running."""
        return await in_thread(self.encode_queries, list(texts))

    def _encode(self, wanted: list[str], kind: Kind) -> tuple[Vectors, Counts]:
        different, inverse = distinct(wanted)
        with encoder_errors(self.name):
            encoded = self._opened().encode(different, kind)
        with self._lock:
            self._cut += encoded.cut
        if len(different) == len(wanted):
            return encoded.vectors, encoded.counts
        return repeated(encoded.vectors, inverse), encoded.counts[inverse]

    def close(self) -> None:
        """Free the memory of the weights; a closed encoder cannot encode."""
        with self._lock:
            super().close()
            if self._query_encoder is not None and self._query_encoder is not self._given_query_encoder:
                self._query_encoder.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._source, self._given_query_encoder, self._query_cache)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._recent = RecentVectors(self._query_cache)


def _made(kind: type[Encoder], source: Source, query_encoder: Encoder | None, query_cache: int) -> Encoder:
    """An encoder from any source."""
    encoder = kind.__new__(kind)
    encoder._start(source, query_encoder, query_cache)
    return encoder
