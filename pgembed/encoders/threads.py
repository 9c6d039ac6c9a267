"""How many threads this process may use, and the threads on which programs under asyncio encode.

The latter are the encoders' own: the default executor of an event loop is shared with everything else that
blocks, and encoding would wait behind it. All event loops of a process share them, first come, first served.
``PGEMBED_ASYNC_THREADS`` bounds how many calls encode at once: by default 4 more than the process may use
cores, since some only wait for a server.

The threads start when they are needed. At its end, a process waits for the calls that have begun; those that
a cancelled task has queued never begin (``asyncio.run`` cancels all tasks at its end). A forked child starts
threads of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from pgembed.exc import EncoderOptionError

VARIABLE = "PGEMBED_ASYNC_THREADS"

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")

_P = ParamSpec("_P")
_R = TypeVar("_R")

_here = threading.local()
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


def available_threads() -> int:
    """Cores that the process is allowed to run on, less where a container's quota is smaller; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


def _quota() -> float | None:
    """CPUs' worth of time that the cgroup grants, ``None`` when it does not limit."""
    try:
        quota, period = _CGROUP_V2.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = _CGROUP_V1_QUOTA.read_text().strip(), _CGROUP_V1_PERIOD.read_text().strip()
        except OSError:
            return None
    try:
        granted = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return granted if granted > 0 else None


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call ``function`` on one of the threads; its context variables are those of the caller.

    A call that is cancelled before it begins leaves the queue. One that has begun runs to its end, since
    threads cannot be stopped; its result is dropped.

    :raises EncoderOptionError: ``PGEMBED_ASYNC_THREADS`` is not a number of threads.
    """
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    if getattr(_here, "is_ours", False):
        # An encoder that runs an event loop of its own, on one of the threads, would wait for another thread:
        # a deadlock when all of them do.
        return call()
    return await asyncio.get_running_loop().run_in_executor(_started(), call)


def _started() -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(
                _size(),
                thread_name_prefix="pgembed-async",
                initializer=partial(setattr, _here, "is_ours", True),
            )
        return _executor


def _size() -> int:
    given = os.environ.get(VARIABLE, "")
    if not given:
        return available_threads() + 4
    if not (given.isascii() and given.isdecimal() and int(given) > 0):
        raise EncoderOptionError(VARIABLE, given, needed="a number of threads, 1 or more")
    return int(given)


def _after_fork() -> None:
    """Forget, in the child, the parent's threads and their queue."""
    global _lock, _executor
    _lock, _executor = threading.Lock(), None
    _here.is_ours = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
