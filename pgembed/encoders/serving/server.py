"""The HTTP side of ``pgembed serve``."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import queue
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from pgembed.encoders.encoder import Encoder
from pgembed.encoders.runtime import Kind
from pgembed.encoders.serving.coalescer import Coalescer
from pgembed.encoders.texts import checked
from pgembed.exc import EncoderError, EncoderOptionError, TextError

_logger = logging.getLogger("pgembed.serve")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    :ivar body: bytes of a request.
    :ivar texts: texts of a request.
    :ivar batch: texts of several requests that are encoded together.
    :ivar waiting: requests that may wait for an encoder; more are answered with 503.
    :ivar seconds: how long a request may wait.
    """

    body: int = 16 * 2**20
    texts: int = 2048
    batch: int = 256
    waiting: int = 1024
    seconds: float = 60.0


class RefusalError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves encoders by name until :meth:`shutdown`.

    :param encoders: the encoders; their names are the models' names, the first is the default.
    :param host: address to listen on; anything but the loopback needs a token.
    :param port: port to listen on, 0 for any free one; ``server_port`` says which.
    :param token: what clients must send as ``Authorization: Bearer``.
    :raises EncoderOptionError: an address that others can reach without a token, or no encoder.
    """

    daemon_threads = True
    request_queue_size = 256

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
        self.token = token
        self.limits = limits or Limits()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.coalescers = {
            encoder.name: Coalescer(encoder, texts=self.limits.batch, waiting=self.limits.waiting)
            for encoder in encoders
        }

    def server_close(self) -> None:
        """Stop listening and finish what has been accepted."""
        super().server_close()
        for coalescer in self.coalescers.values():
            coalescer.close()

    def coalescer(self, model: Any) -> Coalescer:
        """The encoder that a request asks for; without a name, the first."""
        if model is None:
            return next(iter(self.coalescers.values()))
        if model not in self.coalescers:
            raise RefusalError(404, f"no model {model!r}; there are {', '.join(self.coalescers)}")
        return self.coalescers[model]

    def models(self) -> dict[str, Any]:
        """The answer to ``GET /v1/models``."""
        listed = [
            {
                "id": name,
                "object": "model",
                "owned_by": "pgembed",
                "pgembed": coalescer.encoder.spec.document(),
            }
            for name, coalescer in self.coalescers.items()
        ]
        return {"object": "list", "data": listed}

    def embed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to ``POST /v1/embeddings``."""
        coalescer = self.coalescer(body.get("model"))
        texts, kind = body.get("input"), body.get("input_type", "document")
        if kind not in ("document", "query"):
            raise RefusalError(400, f"input_type is {kind!r}, needed document or query")
        if body.get("encoding_format", "float") not in ("float", "base64"):
            raise RefusalError(400, "encoding_format must be float or base64")
        if body.get("dimensions") not in (None, coalescer.encoder.dimensions):
            raise RefusalError(400, f"dimensions must be {coalescer.encoder.dimensions}, as of this encoder")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list):
            raise RefusalError(400, "input must be a text or a list of texts")
        if len(texts) > self.limits.texts:
            raise RefusalError(
                413, f"{len(texts)} texts in one request; at most {self.limits.texts} are taken"
            )
        try:
            future = coalescer.submit(checked(texts), cast("Kind", kind))
            vectors = future.result(self.limits.seconds)
        except TextError as error:
            raise RefusalError(400, str(error)) from error
        except queue.Full as error:
            raise RefusalError(503, "too many requests are waiting") from error
        except TimeoutError as error:
            raise RefusalError(503, f"no answer within {self.limits.seconds:g} seconds") from error
        encoded = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if encoded else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        return {
            "object": "list",
            "data": data,
            "model": coalescer.encoder.name,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
            "fingerprint": coalescer.encoder.fingerprint,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 120  # seconds that an idle connection is kept
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _get(self) -> dict[str, Any]:
        if self.path == "/health":
            return {"status": "ok"}
        self._authorise()
        if self.path == "/v1/models":
            return self.server.models()
        raise RefusalError(404, f"no {self.path}; there are /health, /v1/models and /v1/embeddings")

    def _post(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > self.server.limits.body:
            self.close_connection = True  # the body stays unread
            raise RefusalError(
                413, f"a body of {length or 'unknown'} bytes; at most {self.server.limits.body}"
            )
        content = self.rfile.read(int(length))
        self._authorise()
        if self.path != "/v1/embeddings":
            raise RefusalError(404, f"no {self.path}; there is /v1/embeddings")
        try:
            body = json.loads(content)
        except ValueError as error:
            raise RefusalError(400, f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise RefusalError(400, "the body must be a JSON object")
        return self.server.embed(body)

    def _authorise(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        wanted = self.server.token
        if wanted and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise RefusalError(401, "a bearer token is needed")

    def _answer(self, respond: Any) -> None:
        status, body = 200, {}
        try:
            body = respond()
        except RefusalError as refusal:
            status, body = (
                refusal.status,
                {"error": {"message": str(refusal), "type": "invalid_request_error"}},
            )
        except EncoderError as error:
            _logger.exception("an encoder failed")
            status, body = 500, {"error": {"message": str(error), "type": "encoder_error"}}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        _logger.debug(format, *args)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
