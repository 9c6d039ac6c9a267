"""The server of ``pgembed serve``: what requests ask for, and what they are answered."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import logging
import socket
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from pgembed.encoders.backend import Counts, Kind, Vectors
from pgembed.encoders.encoder import Encoder
from pgembed.encoders.serving.coalescer import Answers, BusyError, Coalescer, Job, Result
from pgembed.encoders.serving.http import Connection, Head, RefusalError
from pgembed.encoders.texts import checked
from pgembed.exc import EncoderOptionError, TextError

_logger = logging.getLogger("pgembed.serve")

_PATIENCE = 5.0  # seconds for the last answers to leave


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    :ivar body: bytes of a request.
    :ivar texts: texts of a request.
    :ivar batch: texts of several requests that are encoded together.
    :ivar waiting: requests that may wait for an encoder; more are answered with 503.
    :ivar seconds: how long a request may wait before its turn.
    :ivar idle: seconds that an idle connection is kept.
    """

    body: int = 16 * 2**20
    texts: int = 2048
    batch: int = 256
    waiting: int = 1024
    seconds: float = 60.0
    idle: float = 120.0


class Server:
    """Serves encoders by name until :meth:`shutdown`.

    Connections are handled on one thread, with asyncio; each encoder has a thread that computes.

    :param encoders: the encoders; their names are the models' names, the first is the default.
    :param host: address to listen on; anything but the loopback needs a token.
    :param port: port to listen on, 0 for any free one; ``server_port`` says which.
    :param token: what clients must send as ``Authorization: Bearer``.
    :raises EncoderOptionError: an address that others can reach without a token, or no encoder.
    :raises OSError: nothing can listen there.
    """

    def __init__(
        self,
        encoders: list[Encoder],
        *,
        host: str = "127.0.0.1",
        port: int = 8817,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not encoders:
            raise EncoderOptionError("encoders", encoders, needed="at least one")
        if not token and not _is_loopback(host):
            needed = "a token, because others can reach that address (or 127.0.0.1)"
            raise EncoderOptionError("host", host, needed=needed)
        self.limits = limits or Limits()
        self._encoders = {encoder.name: encoder for encoder in encoders}
        if len(self._encoders) < len(encoders):
            names = ", ".join(encoder.name for encoder in encoders)
            raise EncoderOptionError("encoders", names, needed="another name for each")
        self._token = token.encode() if token else b""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=256)
        self.server_port: int = self._socket.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._coalescers: dict[str, Coalescer] = {}
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    def serve_forever(self) -> None:
        """Serve; returns after :meth:`shutdown`, when what was accepted has been answered."""
        try:
            asyncio.run(self._serve())
        finally:
            self._loop = None

    def shutdown(self) -> None:
        """Make :meth:`serve_forever` return; from any thread, or a signal handler."""
        loop = self._loop
        if loop is None:
            self._stopped.set()
            self._socket.close()
        else:
            loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self) -> None:
        if self._stopped.is_set():
            return
        self._loop = loop = asyncio.get_running_loop()
        limits = self.limits

        def done(answers: Answers) -> None:
            loop.call_soon_threadsafe(_reply, answers)

        self._coalescers = {
            name: Coalescer(encoder, done, texts=limits.batch, waiting=limits.waiting, seconds=limits.seconds)
            for name, encoder in self._encoders.items()
        }
        server = await loop.create_server(self._connection, sock=self._socket)
        sweeping = loop.create_task(self._sweep())
        await self._stopped.wait()
        sweeping.cancel()
        server.close()
        for coalescer in self._coalescers.values():
            await asyncio.to_thread(coalescer.close)
        for connection in list(self._connections):
            connection.close()
        patience = loop.time() + _PATIENCE
        while any(connection.connected for connection in self._connections) and loop.time() < patience:
            await asyncio.sleep(0.01)

    def _connection(self) -> Connection:
        connection = Connection(self._admit, self._handle, most=self.limits.body)
        self._connections.add(connection)
        return connection

    async def _sweep(self) -> None:
        """Now and then, close what is idle."""
        while True:
            await asyncio.sleep(self.limits.idle / 8)
            late = time.monotonic() - self.limits.idle
            for connection in list(self._connections):
                if connection.idle and connection.last < late:
                    connection.close()

    # --- requests -----------------------------------------------------------------------------------

    def _admit(self, head: Head) -> None:
        """Refuse who may not ask, before the body is read."""
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        if self._token and head.path != "/health" and not known:
            raise RefusalError(401, "a bearer token is needed")

    def _handle(self, connection: Connection, head: Head, body: bytes) -> None:
        try:
            match head.method, head.path:
                case "GET", "/health":
                    connection.answer(b'{"status": "ok"}')
                case "GET", "/v1/models":
                    connection.answer(json.dumps(self._models()).encode())
                case "POST", "/v1/embeddings":
                    self._embed(connection, body)
                case _, "/health" | "/v1/models" | "/v1/embeddings":
                    raise RefusalError(405, f"{head.path} takes no {head.method}")
                case _:
                    raise RefusalError(404, f"no {head.path}; there are /health, /v1/models, /v1/embeddings")
        except RefusalError as refusal:
            connection.refuse(refusal)

    def _models(self) -> dict[str, Any]:
        listed = [
            {"id": name, "object": "model", "owned_by": "pgembed", "pgembed": encoder.spec.document()}
            for name, encoder in self._encoders.items()
        ]
        return {"object": "list", "data": listed}

    def _embed(self, connection: Connection, content: bytes) -> None:
        """Queue what ``POST /v1/embeddings`` asks for."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusalError(400, f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise RefusalError(400, "the body must be a JSON object")
        coalescer = self._coalescer(body.get("model"))
        texts, kind, as_base64 = self._wish(body, coalescer.encoder)
        tail = {"model": coalescer.encoder.name, "fingerprint": coalescer.encoder.fingerprint}
        try:
            coalescer.submit(
                Job(texts, kind, partial(_respond, connection, tail, as_base64), lambda: connection.open)
            )
        except BusyError as error:
            raise RefusalError(503, str(error)) from error

    def _coalescer(self, model: Any) -> Coalescer:
        """The encoder that a request asks for; without a name, the first."""
        if model is None:
            return next(iter(self._coalescers.values()))
        if not isinstance(model, str) or model not in self._coalescers:
            raise RefusalError(404, f"no model {model!r}; there are {', '.join(self._coalescers)}")
        return self._coalescers[model]

    def _wish(self, body: Mapping[str, Any], encoder: Encoder) -> tuple[list[str], Kind, bool]:
        """Texts, their kind, and whether vectors are wanted in base64."""
        body = {key: value for key, value in body.items() if value is not None}  # as some clients say nothing
        texts, kind = body.get("input"), body.get("input_type", "document")
        encoding = body.get("encoding_format", "float")
        if kind not in ("document", "query"):
            raise RefusalError(400, f"input_type is {kind!r}, needed document or query")
        if encoding not in ("float", "base64"):
            raise RefusalError(400, "encoding_format must be float or base64")
        if body.get("dimensions", encoder.dimensions) != encoder.dimensions:
            raise RefusalError(400, f"dimensions must be {encoder.dimensions}, as of this encoder")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list):
            raise RefusalError(400, "input must be a text or a list of texts")
        if len(texts) > self.limits.texts:
            raise RefusalError(
                413, f"{len(texts)} texts in one request; at most {self.limits.texts} are taken"
            )
        try:
            texts = checked(texts)
        except TextError as error:
            raise RefusalError(400, str(error)) from error
        return texts, cast("Kind", kind), encoding == "base64"


def _reply(answers: Answers) -> None:
    for job, result in answers:
        job.reply(result)


def _respond(connection: Connection, tail: dict[str, str], as_base64: bool, result: Result) -> None:
    """The answer to ``POST /v1/embeddings``."""
    if isinstance(result, BusyError):
        connection.refuse(RefusalError(503, str(result)))
    elif isinstance(result, Exception):
        _logger.error("an encoder failed", exc_info=result)
        connection.refuse(RefusalError(500, str(result), "encoder_error"))
    else:
        connection.answer(_document(*result, tail, as_base64))


def _document(vectors: Vectors, counts: Counts, tail: dict[str, str], as_base64: bool) -> bytes:
    """JSON, written piece by piece.

    Nine digits give back the same float32, in a fifth of the time that ``json`` takes for a float64.
    """
    if as_base64:
        written = [f'"{base64.b64encode(vector.tobytes()).decode()}"' for vector in vectors.astype("<f4")]
    else:
        pattern = f"[{','.join(['%.9g'] * vectors.shape[1])}]"
        written = [pattern % tuple(vector) for vector in vectors.tolist()]
    items = [
        f'{{"object": "embedding", "index": {index}, "embedding": {vector}}}'
        for index, vector in enumerate(written)
    ]
    tokens = int(counts.sum())
    rest = json.dumps(tail | {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return f'{{"object": "list", "data": [{", ".join(items)}], {rest[1:]}'.encode()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
