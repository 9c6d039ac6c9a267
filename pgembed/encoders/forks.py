"""What a forked child inherits of native libraries, and how it still works and ends.

The threads of the parent do not exist in a child, but objects that rely on them do. On Linux a child
that ends normally would hang in ``pthread_cond_destroy`` twice: in the destructor of an inherited session, at
Python's finalization, and in the static destructors of ONNX Runtime's library, among libc's exit handlers;
for the latter, importing the package in the parent is enough. So in a child

- what holds an inherited session is never destroyed, and
- libc's first exit handler ends the process, with the status that it was given.

By that time Python has finished: its own ``atexit`` handlers have run and its files are flushed. The handler
flushes libc's streams, to which C extensions may write. Such a child skips the exit handlers and static
destructors that libraries registered before the fork, in the parent, as ``os._exit`` does; those that are
registered in the child run. Death by a signal, ``os._exit`` and ``exec`` work as usual.

The threads of the package ``tokenizers`` are missing too; see :func:`inherited`. And locks that a thread of
the parent holds while it loads a library or opens a session would never be released in the child, those of
Python's imports among them: a fork waits until that is done; see :func:`opening`.

``on_exit`` is a function of glibc. Elsewhere (macOS, musl) no function passes the exit status to a handler:
there a child logs that it may hang.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  (see the end of the file)
import ctypes
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_logger = logging.getLogger("pgembed.encoders")

_holders: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: frozenset[str] = frozenset()
_opening = threading.RLock()
_here = threading.local()
_PATIENCE = 60.0  # seconds after which a fork proceeds anyway


def inherited(package: str) -> bool:
    """Whether ``tokenizers`` or ``onnxruntime`` was loaded before this process was forked."""
    return package in _inherited


def inherit(holder: object) -> None:
    """Never destroy ``holder``, which has a session or is about to open one, in a forked child."""
    _holders.add(holder)


@contextmanager
def opening() -> Iterator[None]:
    """While libraries are loaded and sessions opened: no fork by another thread."""
    with _opening:
        yield


# Looked up here and now: while a thread of the parent loads a library, a child cannot look up anything.
_libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
if hasattr(_libc, "on_exit"):
    _end = ctypes.cast(_libc._exit, ctypes.c_void_p)
    _flush = ctypes.cast(_libc.fflush, ctypes.c_void_p)
    _on_exit, _at_exit = _libc.on_exit, _libc.__cxa_atexit


def _before_fork() -> None:
    _here.waited = _opening.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    if _here.waited:
        _opening.release()


def _after_fork() -> None:
    global _inherited, _opening
    _opening = threading.RLock()
    _inherited = frozenset({"onnxruntime", "tokenizers"} & sys.modules.keys())
    if not inherited("onnxruntime"):
        return
    for holder in list(_holders):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))
    if not hasattr(_libc, "on_exit"):
        _logger.warning(
            "event=fork reason='ONNX Runtime was loaded before this process was forked, which may hang at "
            "its end: fork first, or use the start methods spawn or forkserver'"
        )
        return
    # Handlers run from the last registered to the first: flush all streams, then _exit(status).
    _on_exit(_end, None)
    _at_exit(_flush, None, None)


# Before a fork, the last hook to be registered runs first. The hooks of logging and of concurrent.futures
# take locks that opening needs, so both are imported above.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_after_fork)
