"""Asking a server for JSON: connections that are kept and reused, and patience."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pgembed.exc import EncoderOptionError, EncoderServerError

_AGAIN = (429, 502, 503, 504)


class Client:
    """A client of one server; safe to use from several threads at once.

    :param url: where the server is.
    :param token: sent as ``Authorization: Bearer``.
    :param timeout: seconds for an answer, and the longest pause that a busy server may ask for.
    :param retries: how often a request is repeated when the server is not there, or busy.
    :raises EncoderOptionError: a value that no connection can be made with.
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
            raise EncoderOptionError("token", "another character", needed="printable characters of ASCII")
        if not timeout > 0:
            raise EncoderOptionError("timeout", timeout, needed="more than 0 seconds")
        if retries < 0:
            raise EncoderOptionError("retries", retries, needed="0 or more")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
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

        :param missing_allowed: whether an unknown path is an empty answer.
        :raises EncoderServerError: no answer, or a refusal.
        """
        content = None if body is None else json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            pause = min(0.1 * 2**attempt, 5.0)
            try:
                status, answer, headers = self._once(method, path, content)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    reason = f"no answer ({type(error).__name__}: {error})"
                    fix = "Is the server running? `pgembed serve --encoder NAME` starts one"
                    raise EncoderServerError(self.url, reason, fix=fix) from error
            else:
                if status == 200:
                    return self._parsed(answer)
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
        self, method: str, path: str, content: bytes | None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """One try; that a server has closed an idle connection meanwhile, or was started anew, is none."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return self._exchange(self._make(*self._place, timeout=self._timeout), method, path, content)
            with suppress(ConnectionError):
                return self._exchange(idle, method, path, content)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, content: bytes | None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        try:
            connection.request(method, self._prefix + path, content, self._headers)
            response = connection.getresponse()
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return response.status, answer, response.headers

    def _parsed(self, answer: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise EncoderServerError(self.url, f"an answer that is no JSON ({error})", status=200) from error
        if not isinstance(parsed, dict):
            raise EncoderServerError(self.url, "an answer that is no JSON object", status=200)
        return parsed

    def _refused(self, status: int, answer: bytes, headers: http.client.HTTPMessage) -> EncoderServerError:
        try:
            message = json.loads(answer)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            message = answer[:200].decode(errors="replace")
        fix = ""
        if status in (401, 403):
            fix = "Give the token: Encoder.remote(url, token='...')"
        elif "Location" in headers:
            fix = f"It names another place, {headers['Location']}: give that URL"
        return EncoderServerError(self.url, f"refused with {status}: {message}", status=status, fix=fix)
