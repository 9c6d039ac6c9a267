"""A client for JSON: it reuses connections, and limits answers in time and size."""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pgembed.exc import EncoderOptionError, EncoderServerError

_AGAIN = (429, 502, 503, 504)
_USUAL = 16 * 2**20  # bytes of an answer
_SHOWN = 300  # characters of what a server says


class _Incoming(io.RawIOBase):
    """What a server sends, until a deadline and up to a number of bytes."""

    def __init__(self, connected: socket.socket, deadline: float, most: int) -> None:
        self._socket = connected
        self._raw = connected.makefile("rb", buffering=0)  # keeps the socket open until this is closed
        self._deadline = deadline
        self._left = most

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002
        """As of a socket: what http.client reads."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._left <= 0:
            raise _TooMuchError
        self._socket.settimeout(_remaining(self._deadline))
        count = self._raw.readinto(memoryview(buffer)[: self._left])
        self._left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TooMuchError(Exception):
    """An answer is larger than it may be."""


def _remaining(deadline: float) -> float:
    """
    :raises TimeoutError: no time remains.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the whole answer did not arrive in time")
    return left


class Client:
    """A client of one server; safe to use from several threads at once.

    A remote server is reached by the proxy that the environment names (``https_proxy``, ``http_proxy``,
    unless ``no_proxy`` names the server), one on the loopback directly.

    :param url: where the server is.
    :param token: sent as ``Authorization: Bearer``.
    :param timeout: seconds for a whole answer, and the longest pause that a busy server may ask for.
    :param retries: how often a request is repeated when the server is not there, or busy.
    :raises EncoderOptionError: a value with which no connection can be made.
    """

    def __init__(self, url: str, *, token: str | None, timeout: float, retries: int) -> None:
        self.url = url
        try:
            parts = urlsplit(url)
            self._place = (parts.hostname or "", parts.port)
        except ValueError as error:
            raise EncoderOptionError("url", url, needed=f"http://host:port ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EncoderOptionError("url", url, needed="http://host:port or https://host:port")
        if token and not (token.isascii() and token.isprintable()):
            raise EncoderOptionError("token", "other characters", needed="printable ASCII characters")
        if not timeout > 0:
            raise EncoderOptionError("timeout", timeout, needed="more than 0 seconds")
        if retries < 0:
            raise EncoderOptionError("retries", retries, needed="0 or more")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._prefix = parts.path
        self._tunnel: dict[str, str] | None = None
        self._timeout = timeout
        self._retries = retries
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        proxy = _proxy(parts)
        if proxy is not None:
            self._go_by(proxy, parts)
        self._idle: list[http.client.HTTPConnection] = []  # append and pop are atomic

    def _go_by(self, proxy: SplitResult, parts: SplitResult) -> None:
        """Connect to a proxy: through a tunnel, or without TLS by the whole URL."""
        credentials = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
        encoded = base64.b64encode(credentials.encode()).decode()
        headers = {"Proxy-Authorization": f"Basic {encoded}"} if proxy.username else {}
        if parts.scheme == "https":
            self._tunnel = headers
        else:
            self._prefix = f"http://{parts.netloc.rpartition('@')[2]}{parts.path}"
            self._headers |= headers
        self._server, self._place = self._place, (proxy.hostname or "", proxy.port or 80)

    def _connection(self) -> http.client.HTTPConnection:
        made = self._make(*self._place, timeout=self._timeout)
        if self._tunnel is not None:
            made.set_tunnel(*self._server, self._tunnel)
        return made

    def __del__(self) -> None:
        for connection in getattr(self, "_idle", ()):
            connection.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        missing_allowed: bool = False,
        array_allowed: bool = False,
        most: int = _USUAL,
    ) -> dict[str, Any]:
        """Send a request, again if necessary; returns the JSON object of the answer.

        It follows no redirects.

        :param missing_allowed: whether an unknown path counts as an empty answer.
        :param array_allowed: whether an answer may be an array, which comes as ``{"data": [...]}``.
        :param most: bytes that the answer may have.
        :raises EncoderServerError: no answer, one that is too large, or a refusal.
        """
        content = None if body is None else json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            pause = min(0.1 * 2**attempt, 5.0)
            try:
                status, answer, headers = self._once(method, path, content, most)
            except _TooMuchError:
                raise EncoderServerError(self.url, f"an answer of more than {most} bytes") from None
            except (OSError, http.client.HTTPException) as error:
                if last:
                    reason = f"no answer ({type(error).__name__}: {error})"
                    fix = "Is the server running? `pgembed serve` starts one"
                    raise EncoderServerError(self.url, reason, fix=fix) from error
            else:
                if status == 200:
                    return self._parsed(answer, array_allowed)
                if status == 404 and missing_allowed:
                    return {}
                if last or status not in _AGAIN:
                    raise self._refused(status, answer, headers)
                wait = headers.get("Retry-After", "")
                if wait.isdecimal():
                    pause = min(float(wait), self._timeout)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _once(
        self, method: str, path: str, content: bytes | None, most: int
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One attempt; an idle connection that the server has closed meanwhile does not count as one."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return self._exchange(self._connection(), method, path, content, most)
            with suppress(ConnectionError):
                return self._exchange(idle, method, path, content, most)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, content: bytes | None, most: int
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        deadline = time.monotonic() + self._timeout
        connection.response_class = partial(_response, deadline, most)  # type: ignore[assignment]
        try:
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(_remaining(deadline))
            connection.request(method, self._prefix + path, content, self._headers)
            with connection.getresponse() as response:
                if (response.length or 0) > most:
                    raise _TooMuchError
                answer = response.read(most + 1)
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
            if len(answer) > most:
                raise _TooMuchError
        except ValueError as error:  # of http.client, for invalid lengths
            connection.close()
            raise http.client.HTTPException(str(error)) from error
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return response.status, answer, response.headers

    def _parsed(self, answer: bytes, array_allowed: bool) -> dict[str, Any]:
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise EncoderServerError(self.url, f"an answer that is not JSON ({error})", status=200) from error
        if array_allowed and isinstance(parsed, list):
            return {"data": parsed}
        if not isinstance(parsed, dict):
            raise EncoderServerError(self.url, "an answer that is not a JSON object", status=200)
        return parsed

    def _refused(self, status: int, answer: bytes, headers: http.client.HTTPMessage) -> EncoderServerError:
        try:
            message = str(json.loads(answer)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            message = answer[:_SHOWN].decode(errors="replace")
        message = "".join(character if character.isprintable() else " " for character in message[:_SHOWN])
        fix = ""
        if status in (401, 403):
            fix = "Pass the token, as in remote(url, token='...')"
        elif "Location" in headers:
            fix = f"It redirects to {headers['Location'][:_SHOWN]}: pass that URL"
        return EncoderServerError(self.url, f"refused with {status}: {message}", status=status, fix=fix)


def _response(
    deadline: float, most: int, connected: socket.socket, **options: Any
) -> http.client.HTTPResponse:
    """An answer within limits; its framing (headers, chunks) may be as large as itself."""
    incoming: Any = _Incoming(connected, deadline, 2 * most + 2**18)
    return http.client.HTTPResponse(incoming, **options)


def is_loopback(host: str) -> bool:
    """Whether ``host``, an address or a name, is this machine for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy for a server, if there is one.

    :raises EncoderOptionError: one that does not use HTTP.
    """
    host = parts.hostname or ""
    given = None if is_loopback(host) else getproxies().get(parts.scheme)
    if not given or proxy_bypass(host):
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    if proxy.scheme != "http" or not proxy.hostname:
        name = f"the proxy of {parts.scheme} URLs"
        raise EncoderOptionError(name, proxy.hostname, needed="http://host:port, or no_proxy for this server")
    return proxy
