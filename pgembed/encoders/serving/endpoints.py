"""The server of ``pgembed serve``: its connections and its endpoints."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.reranker import Reranker
from pgembed.encoders.serving import embeddings, rankings
from pgembed.encoders.serving.coalescer import Answers, BusyError, Coalescer, Job, Result
from pgembed.encoders.serving.http import HEAD, Connection, Head
from pgembed.encoders.serving.limits import Arriving, Held, Limits, RefusalError, overloaded
from pgembed.encoders.sources.client import is_loopback
from pgembed.encoders.text.texts import Counts, Kind, Text, Vectors
from pgembed.exc import EncoderOptionError

_logger = logging.getLogger("pgembed.serve")

_BACKLOG = 100  # connections that may be accepted at once, before they are counted
_FILES = 64  # that the process needs besides its connections
_LARGE = 2**20  # bytes of an answer that is written on another thread than the event loop's
_RESULT = 128  # bytes of a text's score in an answer
_SHOWN = 100  # characters of what a client sent, in the answer
_PATHS = {"/health": "GET", "/v1/models": "GET", "/v1/embeddings": "POST"}
_RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")  # TEI's and Jina's, and those of Cohere's clients
_PATHS |= dict.fromkeys(_RERANK, "POST")


class Server:
    """Serves encoders and rerankers by name until :meth:`shutdown`.

    Connections are handled on one thread, with asyncio; each model has a thread that computes.

    :param encoders: the encoders; their names are the models' names, the first is the default.
    :param rerankers: models for ``/rerank``, likewise.
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
        rerankers: Sequence[Reranker] = (),
        host: str = "127.0.0.1",
        port: int = 8817,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not encoders and not rerankers:
            raise EncoderOptionError("encoders", encoders, needed="at least one, or a reranker")
        if not token and not is_loopback(host):
            needed = "a token, because others can reach that address (or 127.0.0.1)"
            raise EncoderOptionError("host", host, needed=needed)
        self.limits = limits or Limits()
        models: list[Encoder | Reranker] = [*encoders, *rerankers]
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            names = ", ".join(model.name for model in models)
            raise EncoderOptionError("encoders", names, needed="different names")
        self._token = token.encode() if token else b""
        self._made = int(time.time())
        self._most = min(self.limits.connections, max(_open_files() - _BACKLOG - _FILES, 1))
        if self._most < self.limits.connections:
            _logger.warning("the limit of open files (ulimit -n) allows for %d connections", self._most)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.server_port: int = self._socket.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._coalescers: dict[str, Coalescer] = {}
        self._connections: dict[Connection, asyncio.Task[Any] | None] = {}
        self._arriving = Arriving(self.limits.arriving)
        self._held = Held(self.limits.held)

    def serve_forever(self) -> bool:
        """Serve; returns after :meth:`shutdown`, when what had arrived has been answered.

        That takes no longer than ``limits.stop_seconds``, and a second.

        :returns: whether all encoders have come to rest. One that still computes would abort the process at
            its end: leave with :func:`os._exit`.
        """
        try:
            return asyncio.run(self._serve())
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

    async def _serve(self) -> bool:
        if self._stopped.is_set():
            return True
        self._loop = loop = asyncio.get_running_loop()
        limits = self.limits

        def done(answers: Answers) -> None:
            with suppress(RuntimeError):  # the server has been stopped
                loop.call_soon_threadsafe(_reply, answers)

        self._coalescers = {
            name: Coalescer(
                encoder,
                done,
                texts=limits.batch,
                waiting=limits.waiting,
                seconds=limits.seconds,
                pass_seconds=limits.pass_seconds,
            )
            for name, encoder in self._models.items()
        }
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=HEAD, backlog=_BACKLOG)
        await self._stopped.wait()
        server.close()
        return await self._finish()

    async def _finish(self) -> bool:
        """Answer what has arrived; cancel what is not done in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.stop_seconds
        for connection in list(self._connections):
            connection.give_way(overloaded("the server is being stopped"))
        tasks = [task for task in self._connections.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self.limits.stop_seconds)
        for connection, task in list(self._connections.items()):
            connection.abort()
            if task is not None:
                task.cancel()
        left = max(end - loop.time(), 0.1)
        closing = [asyncio.to_thread(each.close, left) for each in self._coalescers.values()]
        return all(await asyncio.gather(*closing))

    # --- connections --------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self.limits, self._arriving)
        there_is_room = self._make_room()
        self._connections[connection] = asyncio.current_task()
        try:
            if there_is_room:
                await self._converse(connection)
            else:
                await connection.refuse(overloaded("too many clients are waiting"), last=True)
        except (OSError, asyncio.CancelledError):
            connection.abort()
        finally:
            self._connections.pop(connection, None)
            writer.close()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, if there are too many."""
        if len(self._connections) < self._most:
            return True
        useless = (connection for connection in self._connections if connection.state != "waiting")
        oldest = min(useless, key=lambda connection: connection.since, default=None)
        if oldest is None:
            return False
        oldest.abort()
        del self._connections[oldest]
        return True

    async def _converse(self, connection: Connection) -> None:
        """Answer requests until the client leaves, or the server is stopped."""
        last = self._stopped.is_set()
        while not last:
            try:
                request = await connection.request(self._admit)
            except RefusalError as refusal:
                await connection.dismiss(refusal)
                return
            if request is None:
                return
            head, body = request
            try:
                await self._answer(connection, head, body)
            except RefusalError as refusal:
                await connection.refuse(refusal)
            except ConnectionError:
                raise
            except Exception as error:
                _logger.exception("a request failed")
                await connection.refuse(RefusalError(500, f"{type(error).__name__}: {error}"))
            finally:
                body.clear()  # or an idle connection would keep it
            last = not head.keep_alive or self._stopped.is_set()

    # --- requests -----------------------------------------------------------------------------------

    def _admit(self, head: Head) -> None:
        """Refuse clients without the token, before the body is read."""
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
        if self._token and head.path != "/health" and not known:
            raise RefusalError(
                401,
                "a bearer token is needed",
                code="invalid_api_key",
                headers="WWW-Authenticate: Bearer\r\n",
            )

    async def _answer(self, connection: Connection, head: Head, body: bytearray) -> None:
        of_model = head.path.startswith("/v1/models/")
        allowed = "GET" if of_model else _PATHS.get(head.path)
        if allowed is None:
            raise RefusalError(404, f"no {head.path[:_SHOWN]}; there are {', '.join(_PATHS)}")
        if head.method != allowed and (head.method, allowed) != ("HEAD", "GET"):
            message = f"{head.path[:_SHOWN]} takes no {head.method}, but {allowed}"
            raise RefusalError(405, message, headers=f"Allow: {allowed}\r\n")
        if head.path == "/v1/embeddings":
            await self._embed(connection, body)
        elif head.path in _RERANK:
            await self._rerank(connection, body)
        elif head.path == "/health":
            await connection.answer(b'{"status": "ok"}')
        elif of_model:
            name = unquote(head.path.removeprefix("/v1/models/"))
            await connection.answer(json.dumps(self._model(self._coalescer(name).encoder)).encode())
        else:
            models = [self._model(model) for model in self._models.values()]
            await connection.answer(json.dumps({"object": "list", "data": models}).encode())

    def _model(self, encoder: Encoder | Reranker) -> dict[str, Any]:
        """A model object: OpenAI's fields, and the encoder's spec."""
        return {
            "id": encoder.name,
            "object": "model",
            "created": self._made,
            "owned_by": "pgembed",
            "pgembed": encoder.spec.document(),
        }

    def _coalescer(self, model: Any, kind: type[Encoder | Reranker] | None = None) -> Coalescer:
        """The model that a request asks for; without a name, the first of its kind."""
        fitting = {
            name: each for name, each in self._coalescers.items() if isinstance(each.encoder, kind or object)
        }
        if model is None and fitting:
            return next(iter(fitting.values()))
        if not isinstance(model, str) or model not in fitting:
            purpose = {Encoder: " for embeddings", Reranker: " for /rerank"}.get(kind, "") if kind else ""
            message = f"no model {repr(model)[:_SHOWN]}{purpose}; there are {', '.join(fitting) or 'none'}"
            raise RefusalError(404, message, param="model", code="model_not_found")
        return fitting[model]

    async def _embed(self, connection: Connection, content: bytearray) -> None:
        """Answer ``POST /v1/embeddings``."""
        body = embeddings.parsed(content, self.limits.texts)
        coalescer = self._coalescer(body.get("model"), Encoder)
        encoder = cast("Encoder", coalescer.encoder)
        wishing = partial(embeddings.wished, body, encoder, self.limits.texts)
        wish = await asyncio.to_thread(wishing) if "input_tokenizer" in body else wishing()
        size = len(content) + wish.size(encoder)
        content.clear()
        body.clear()
        with self._held.taken(size):
            vectors, counts = await _result(coalescer, wish.texts, wish.kind, connection)
            tail = {"model": encoder.name, "fingerprint": encoder.fingerprint}
            write = partial(embeddings.document, vectors, counts, tail, wish.as_base64)
            answer = await asyncio.to_thread(write) if vectors.nbytes > _LARGE else write()
            await connection.answer(answer)

    async def _rerank(self, connection: Connection, content: bytearray) -> None:
        """Answer ``POST /rerank``."""
        body = embeddings.parsed(content, 3 * self.limits.texts)  # each document may be an object with a text
        coalescer = self._coalescer(body.get("model"), Reranker)
        reranker = cast("Reranker", coalescer.encoder)
        wish = rankings.wished(body, reranker, self.limits.texts)
        size = (1 + wish.with_text) * len(content) + len(wish.pairs) * _RESULT
        content.clear()
        body.clear()
        with self._held.taken(size):
            if not wish.cutting:
                await asyncio.to_thread(rankings.check_lengths, wish, reranker)
            logits, counts = await _result(coalescer, wish.pairs, "document", connection)
            await connection.answer(rankings.document(wish, reranker, logits, counts))


async def _result(
    coalescer: Coalescer, texts: Sequence[Text], kind: Kind, connection: Connection
) -> tuple[Vectors, Counts]:
    """What the model makes of the texts, or pairs of texts.

    :raises RefusalError: it fails, or is too busy.
    """
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def reply(result: Result) -> None:
        if not future.done():
            future.set_result(result)

    wanted = lambda: connection.open and not future.done()  # noqa: E731
    try:
        coalescer.submit(Job(texts, kind, reply, wanted))
    except BusyError as error:
        raise overloaded(str(error)) from None
    result = await future
    if isinstance(result, BusyError):
        raise overloaded(str(result))
    if isinstance(result, BaseException):
        _logger.error("an encoder failed", exc_info=result)
        raise RefusalError(500, str(result) or type(result).__name__, kind="encoder_error")
    return result


def _reply(answers: Answers) -> None:
    for job, result in answers:
        job.reply(result)


def _open_files() -> int:
    """How many files the process may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
