"""An encoder whose vectors a server computes: ``pgembed serve``, or any with OpenAI's embeddings API."""

from __future__ import annotations

import base64
import http.client
import json
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from pgembed.encoders.backend import Encoded, Kind, Vectors
from pgembed.encoders.spec import EncoderSpec
from pgembed.exc import EncoderError, EncoderOptionError, EncoderServerError, FingerprintMismatchError

_AGAIN = (429, 502, 503, 504)


class Remote:
    """A server as the source of an encoder; the arguments are those of :meth:`Encoder.remote`."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        fingerprint: str | None,
        dimensions: int | None,
        prompts: dict[Kind, str],
        **connection: Any,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EncoderOptionError("url", url, needed="http://host:port or https://host:port")
        self.fingerprint = fingerprint
        self.dimensions = dimensions
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._prompts = prompts
        self._connection = connection

    @property
    def name(self) -> str:
        """The model's name, or the URL."""
        return self._model or self._url

    @property
    def label(self) -> str:
        """The URL and the model."""
        return f"at {self._url}{f', model={self._model!r}' if self._model else ''}"

    def early_spec(self) -> None:
        """Nobody is asked before there is something to encode."""

    def tower(self) -> None:
        """The server has it, if there is one."""

    def spec(self) -> EncoderSpec:
        """The server's spec, compared with what was stated."""
        spec = self._ask_for_spec(_Server(self._url, **self._connection))
        if spec is None:
            raise self._unstated()
        return spec

    def tokenizer(self) -> NoReturn:
        """The server has it."""
        raise EncoderOptionError(
            "encoder", self.label, needed="one that tells what it cuts: a server does not"
        )

    def backend(self) -> _RemoteBackend:
        """Connections to the server, after a comparison of what it has with what was stated."""
        server = _Server(self._url, **self._connection)
        spec = self._ask_for_spec(server)
        dimensions = self.dimensions if spec is None else spec.dimensions
        if dimensions is None or (spec is None and self.fingerprint is None):
            raise self._unstated()
        for kind, prompt in self._prompts.items():
            if spec is not None and prompt:
                raise EncoderOptionError(f"{kind}_prompt", prompt, needed="none: this server has its own")
        return _RemoteBackend(server, self._model, dimensions, self._prompts, native=spec is not None)

    def _unstated(self) -> EncoderError:
        return EncoderError(
            f"{self._url} tells neither fingerprint nor dimensions of its model: "
            "state them, Encoder.remote(url, fingerprint='...', dimensions=...)"
        )

    def _ask_for_spec(self, server: _Server) -> EncoderSpec | None:
        """The spec, from a server that tells one; compared with what was stated."""
        listed = server.ask("GET", "/v1/models", missing_allowed=True).get("data", [])
        entry: dict[str, Any] = next((item for item in listed if self._model in (None, item.get("id"))), {})
        if "pgembed" not in entry:
            return None
        spec = EncoderSpec.parse(entry["pgembed"], Path(self._url))
        if self.fingerprint is not None and spec.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                spec.fingerprint, self.fingerprint, where=f"the encoder at {self._url}"
            )
        if self.dimensions not in (None, spec.dimensions):
            needed = f"{spec.dimensions}, as the server's"
            raise EncoderOptionError("dimensions", self.dimensions, needed=needed)
        return spec


class _RemoteBackend:
    """The backend: texts to the server in batches, vectors back."""

    def __init__(
        self, server: _Server, model: str | None, dimensions: int, prompts: dict[Kind, str], *, native: bool
    ) -> None:
        self._server = server
        self._model = model
        self._dimensions = dimensions
        self._prompts = prompts
        self._native = native

    def encode(self, texts: list[str], kind: Kind) -> Encoded:
        """Vectors of ``texts``; how many tokens they have and what was cut only the server knows."""
        vectors = np.empty((len(texts), self._dimensions), dtype=np.float32)
        for start in range(0, len(texts), self._server.batch):
            part = texts[start : start + self._server.batch]
            body: dict[str, Any] = {"input": part, "encoding_format": "base64"}
            if self._model is not None:
                body["model"] = self._model
            if self._native:
                body["input_type"] = kind
            else:
                body["input"] = [self._prompts[kind] + text for text in part]
            answer = self._server.ask("POST", "/v1/embeddings", body)
            for item in answer.get("data", ()):
                vectors[start + item["index"]] = self._vector(item["embedding"])
            if len(answer.get("data", ())) != len(part):
                found = f"{len(answer.get('data', ()))} vectors for {len(part)} texts"
                raise EncoderServerError(self._server.url, found)
        return Encoded(vectors, np.zeros(len(texts), dtype=np.int64), 0)

    def _vector(self, embedding: str | list[float]) -> Vectors:
        vector = (
            np.frombuffer(base64.b64decode(embedding), dtype="<f4")
            if isinstance(embedding, str)
            else np.asarray(embedding, dtype=np.float32)
        )
        if len(vector) != self._dimensions:
            reason = f"vectors of {len(vector)} dimensions, stated were {self._dimensions}"
            raise EncoderServerError(self._server.url, reason)
        return vector


class _Server:
    """HTTP over connections that are kept and reused, and patience."""

    def __init__(self, url: str, *, token: str | None, timeout: float, retries: int, batch: int) -> None:
        self.url = url
        self.batch = batch
        parts = urlsplit(url)
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._place = (parts.hostname or "", parts.port)
        self._prefix = parts.path
        self._timeout = timeout
        self._retries = retries
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._idle: list[http.client.HTTPConnection] = []  # append and pop are atomic

    def __del__(self) -> None:
        for connection in getattr(self, "_idle", ()):
            connection.close()

    def ask(
        self, method: str, path: str, body: Any = None, *, missing_allowed: bool = False
    ) -> dict[str, Any]:
        """Send a request, again if need be; returns the JSON object of the answer.

        :raises EncoderServerError: no answer, or a refusal.
        """
        content = None if body is None else json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                status, answer, pause = self._once(method, path, content)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    reason = f"no answer ({type(error).__name__}: {error})"
                    fix = "Is the server running? `pgembed serve --encoder NAME` starts one"
                    raise EncoderServerError(self.url, reason, fix=fix) from error
                pause = None
            else:
                if status == 200:
                    return self._parsed(answer)
                if status == 404 and missing_allowed:
                    return {}
                if last or status not in _AGAIN:
                    raise self._refused(status, answer)
            time.sleep(pause if pause is not None else min(0.1 * 2**attempt, 5.0))
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes, float | None]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._make(*self._place, timeout=self._timeout)
        try:
            connection.request(method, self._prefix + path, content, self._headers)
            response = connection.getresponse()
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        wait = response.headers.get("Retry-After", "")
        return response.status, answer, float(wait) if wait.isdecimal() else None

    def _parsed(self, answer: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(answer)
        except ValueError as error:
            raise EncoderServerError(self.url, f"an answer that is no JSON ({error})", status=200) from error
        if not isinstance(parsed, dict):
            raise EncoderServerError(self.url, "an answer that is no JSON object", status=200)
        return parsed

    def _refused(self, status: int, answer: bytes) -> EncoderServerError:
        try:
            message = json.loads(answer)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = answer[:200].decode(errors="replace")
        fix = "Give the token: Encoder.remote(url, token='...')" if status in (401, 403) else ""
        return EncoderServerError(self.url, f"refused with {status}: {message}", status=status, fix=fix)
