"""The heartbeat of workers: a small file each, by which a health check sees whether rows are being filled.

A worker writes ``worker-<pid>.json`` every two seconds, by renaming, into a folder of its user. For each
column it says since when rows have been waiting without progress; for an idle one, nothing. :func:`problems`
reads the files of all workers of the machine that are alive, and needs no database.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgembed.exc import PgembedError

logger = logging.getLogger(__name__)

#: Seconds between two beats.
BEAT = 2.0


@dataclass(frozen=True)
class State:
    """What waits in a column, or in the worker as a whole.

    :ivar since: since when work has been waiting (:func:`time.time`).
    :ivar what: what waits and why, for people.
    """

    name: str
    since: float
    what: str


def default_folder() -> Path:
    """``$XDG_RUNTIME_DIR/pgembed``, or ``pgembed-<uid>`` in the folder of temporary files."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "pgembed"
    return Path(tempfile.gettempdir()) / f"pgembed-{_uid()}"


class Heartbeat:
    """One worker's file, from the first beat to :meth:`stop`.

    Where the folder cannot be written to, the worker logs that and fills all the same; the check will not
    find it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"worker-{os.getpid()}.json"
        self._next = 0.0
        self._complained = False

    @property
    def due(self) -> bool:
        """Whether it is time for a beat."""
        return time.monotonic() >= self._next

    def beat(self, waiting: list[State]) -> None:
        """Say what waits, and that the worker is alive."""
        self._next = time.monotonic() + BEAT
        document = {
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "at": time.time(),
            "waiting": [asdict(state) for state in waiting],
        }
        partial = self._file.with_suffix(".partial")
        try:
            _make(self._file.parent)
            partial.write_text(json.dumps(document))
            partial.replace(self._file)
        except (OSError, PgembedError) as error:
            if not self._complained:
                logger.warning("event=heartbeat file=%r error=%r", str(self._file), str(error))
            self._complained = True

    def stop(self) -> None:
        """The worker ends in order, and the check must not report it."""
        self._file.unlink(missing_ok=True)


def problems(folder: Path, *, grace: float) -> list[str]:
    """What is wrong with the workers of this machine; nothing if all is well.

    :param grace: seconds for which anything may last before it is a problem.
    """
    alive = []
    for file in sorted(folder.glob("worker-*.json")) if _is_ours(folder) else ():
        try:
            document = json.loads(file.read_text())
            if _is_alive(document["pid"], document.get("started")):
                alive.append(document)
            else:
                file.unlink(missing_ok=True)  # of a worker that was killed
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, OSError) as error:
            return [f"{file}: not the heartbeat of a worker ({type(error).__name__}: {error})"]
    if not alive:
        return [f"no worker runs that has its heartbeat in {folder}"]
    return [problem for document in alive for problem in _of_worker(document, grace)]


def _of_worker(document: dict[str, Any], grace: float) -> list[str]:
    at = document["at"]
    silent = time.time() - at
    if silent > max(grace, 5 * BEAT):
        return [f"worker {document['pid']}: no heartbeat for {silent:.0f} seconds"]
    states = [State(**state) for state in document["waiting"]]
    return [
        f"{state.name}: {state.what}, for {at - state.since:.0f} seconds"
        for state in states
        if at - state.since > grace
    ]


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder):
        raise PgembedError(f"{folder} belongs to another user")


def _is_ours(folder: Path) -> bool:
    """Whether the folder exists and is ours: anyone may write to the folder above."""
    try:
        return folder.is_dir() and folder.lstat().st_uid in (_uid(), 0)
    except FileNotFoundError:
        return False


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None where there is no ``/proc``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _is_alive(pid: int, started: str | None) -> bool:
    if os.name == "nt":  # where a signal cannot ask
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return started in (None, _started(pid))  # else the number is that of another process by now
