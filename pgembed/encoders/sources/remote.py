"""An encoder whose vectors a server computes: ``pgembed serve``, or any with OpenAI's embeddings API."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pgembed.encoders.sources.client import Client
from pgembed.encoders.sources.local import check_kind
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Encoded, Kind, Vectors, pieces
from pgembed.exc import EncoderError, EncoderOptionError, EncoderServerError, FingerprintMismatchError

_MOST_DIMENSIONS = 2**16
#: Bytes that an answer may have for each number, text and request: far more than JSON takes.
NUMBER, TEXT, ANSWER = 64, 2**10, 2**16
#: Characters of one request (unless a single text has more), so that long texts stay below servers' limits.
CHARACTERS = 2**20


class Served:
    """A model of a server as a source; the arguments are those of :meth:`Encoder.remote`.

    :ivar pairs: whether it scores pairs of texts.
    """

    pairs = False
    reports = True

    def __init__(
        self, url: str, *, model: str | None, fingerprint: str | None, batch: int, **connection: Any
    ) -> None:
        if batch < 1:
            raise EncoderOptionError("batch", batch, needed="1 or more")
        self.fingerprint = fingerprint
        self.dimensions: int | None = None
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._batch = batch
        self._connection = connection
        self._client()  # refuses what no connection can be made with

    @property
    def name(self) -> str:
        """The model's name, or the URL."""
        return self._model or self._url

    @property
    def label(self) -> str:
        """The URL and the model."""
        return f"at {self._url}{f', model={self._model!r}' if self._model else ''}"

    @property
    def stated(self) -> dict[str, Any]:
        """Nothing: the server decides the vectors."""
        return {}

    def early_spec(self) -> None:
        """None: the server is not asked before there is something to encode."""

    def tower(self) -> None:
        """None here: a server may have one."""

    def spec(self) -> EncoderSpec:
        """The server's spec, compared with what was stated."""
        spec = self._ask_for_spec(self._client())
        if spec is None:
            raise self._unstated()
        return spec

    def tokenizer(self, *, whole: bool = False) -> NoReturn:
        """There is none here."""
        needed = "one that counts tokens" if whole else "one that reports what it cuts"
        raise EncoderOptionError("encoder", self.label, needed=f"{needed}: a server does not")

    def _client(self) -> Client:
        return Client(self._url, **self._connection)

    def _unstated(self) -> EncoderError:
        """What is missing, where the server reports no spec."""
        raise NotImplementedError

    def _ask_for_spec(self, client: Client) -> EncoderSpec | None:
        """The spec, from a server that reports one; compared with what was stated."""
        listed = client.ask("GET", "/v1/models", missing_allowed=True).get("data")
        models = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        fitting = [item for item in models if self._model in (None, item.get("id"))]
        # Without a name, the first that scores pairs: the server takes that one as well.
        entry: dict[str, Any] = next((item for item in fitting if self.pairs and _has_labels(item)), {})
        entry = entry or next(iter(fitting), {})
        if "pgembed" not in entry:
            return None
        try:
            spec = EncoderSpec.parse(entry["pgembed"], Path(self._url))
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            reason = f"a spec that cannot be read ({type(error).__name__}: {error})"
            raise EncoderServerError(self._url, reason, status=200) from error
        check_kind(spec, self.label, pairs=self.pairs)
        if self.fingerprint is not None and spec.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                spec.fingerprint, self.fingerprint, where=f"the encoder at {self._url}"
            )
        return spec


def _has_labels(item: dict[str, Any]) -> bool:
    spec = item.get("pgembed")
    return isinstance(spec, dict) and bool(spec.get("labels"))


def check_fingerprint(answer: dict[str, Any], fingerprint: str | None, url: str) -> None:
    """
    :raises FingerprintMismatchError: a server answers with another model than it had before.
    """
    reported = answer.get("fingerprint")
    if None not in (reported, fingerprint) and reported != fingerprint:
        raise FingerprintMismatchError(
            str(reported)[:100], str(fingerprint), where=f"the encoder now at {url}"
        )


class Remote(Served):
    """A server as the source of an encoder; the arguments are those of :meth:`Encoder.remote`."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        fingerprint: str | None,
        dimensions: int | None,
        prompts: dict[Kind, str],
        batch: int,
        **connection: Any,
    ) -> None:
        super().__init__(url, model=model, fingerprint=fingerprint, batch=batch, **connection)
        self.dimensions = dimensions
        self._prompts = prompts

    def backend(self) -> _RemoteBackend:
        """Connections to the server, once its spec has been compared with what was stated."""
        client = self._client()
        spec = self._ask_for_spec(client)
        dimensions = self.dimensions if spec is None else spec.dimensions
        if dimensions is None or (spec is None and self.fingerprint is None):
            raise self._unstated()
        for kind, prompt in self._prompts.items():
            if spec is not None and prompt:
                raise EncoderOptionError(f"{kind}_prompt", prompt, needed="none: this server has its own")
        return _RemoteBackend(
            client,
            self._model,
            dimensions,
            self._prompts,
            batch=self._batch,
            fingerprint=None if spec is None else spec.fingerprint,
        )

    def _unstated(self) -> EncoderError:
        return EncoderError(
            f"{self._url} reports neither fingerprint nor dimensions of its model: "
            "pass them, Encoder.remote(url, fingerprint='...', dimensions=...)"
        )

    def _ask_for_spec(self, client: Client) -> EncoderSpec | None:
        spec = super()._ask_for_spec(client)
        if spec is None:
            return None
        if type(spec.dimensions) is not int or not 0 < spec.dimensions <= _MOST_DIMENSIONS:
            reason = f"a spec of {str(spec.dimensions)[:20]} dimensions, expected 1 to {_MOST_DIMENSIONS}"
            raise EncoderServerError(self._url, reason, status=200)
        if self.dimensions not in (None, spec.dimensions):
            needed = f"{spec.dimensions}, as the server's"
            raise EncoderOptionError("dimensions", self.dimensions, needed=needed)
        return spec


class _RemoteBackend:
    """The backend: texts to the server in batches, vectors back.

    :ivar fingerprint: that of the server's encoder, ``None`` if the server does not report it.
    """

    def __init__(
        self,
        client: Client,
        model: str | None,
        dimensions: int,
        prompts: dict[Kind, str],
        *,
        batch: int,
        fingerprint: str | None,
    ) -> None:
        self._client = client
        self._model = model
        self._dimensions = dimensions
        self._prompts = prompts
        self._batch = batch
        self._fingerprint = fingerprint

    def encode(self, texts: Sequence[Any], kind: Kind) -> Encoded:
        """Vectors of ``texts``; only the server knows how many tokens they have and what was cut."""
        vectors = np.empty((len(texts), self._dimensions), dtype=np.float32)
        lengths = [len(text) for text in texts]
        for start, end in pieces(lengths, count=self._batch, room=CHARACTERS):
            body: dict[str, Any] = {"input": texts[start:end], "encoding_format": "base64"}
            if self._model is not None:
                body["model"] = self._model
            if self._fingerprint is not None:
                body["input_type"] = kind
            else:
                body["input"] = [self._prompts[kind] + text for text in texts[start:end]]
            most = (end - start) * (self._dimensions * NUMBER + TEXT) + ANSWER
            self._read(self._client.ask("POST", "/v1/embeddings", body, most=most), vectors[start:end])
        return Encoded(vectors, np.zeros(len(texts), dtype=np.int64), 0)

    def _read(self, answer: dict[str, Any], vectors: Vectors) -> None:
        """Put the vectors of an answer into their rows."""
        check_fingerprint(answer, self._fingerprint, self._client.url)
        try:
            items = {int(item["index"]): self._vector(item["embedding"]) for item in answer.get("data") or ()}
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            reason = f"an answer with something other than vectors ({type(error).__name__}: {error})"
            raise EncoderServerError(self._client.url, reason, status=200) from error
        if sorted(items) != list(range(len(vectors))):
            found = f"{len(items)} vectors for {len(vectors)} texts"
            found += f", numbered {min(items)} to {max(items)}" if len(items) == len(vectors) else ""
            raise EncoderServerError(self._client.url, found, status=200)
        for index, vector in items.items():
            vectors[index] = vector

    def _vector(self, embedding: str | list[float]) -> Vectors:
        vector = (
            np.frombuffer(base64.b64decode(embedding), dtype="<f4")
            if isinstance(embedding, str)
            else np.asarray(embedding, dtype=np.float32)
        )
        if vector.shape != (self._dimensions,):
            reason = f"vectors of {vector.size} dimensions, expected {self._dimensions}"
            raise EncoderServerError(self._client.url, reason, status=200)
        if not np.isfinite(vector).all():
            raise EncoderServerError(self._client.url, "a vector with NaN or infinity in it", status=200)
        return vector
