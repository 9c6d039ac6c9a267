"""How many threads this process may use, those on which programs under asyncio encode, and panics.

The threads are the encoders' own: in the default executor of an event loop, encoding would wait behind
everything else that blocks. All event loops of a process share them. ``PGEMBED_ASYNC_THREADS`` bounds how
many calls encode at once: by default 4 more than the process may use cores, since some only wait for a
server.

The threads start when they are needed. At its end, a process waits for the calls that have begun; those that
a cancelled task has queued never begin (``asyncio.run`` cancels all tasks at its end). A forked child starts
threads of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

from pgembed.exc import EncoderOptionError, EncoderPanicError

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


def off_event_loop(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call ``function``; under an async engine or session, on a thread while the event loop goes on.

    SQLAlchemy's asyncio extension runs its synchronous internals (flushes, bind processors) in a greenlet,
    and lets such code await by switching to the greenlet of the loop. Outside of it, this is a plain call.
    Errors of ``function`` are raised unchanged; context variables are the caller's.
    """
    # Without greenlet nothing runs in one, and SQLAlchemy's own functions raise.
    if find_spec("greenlet") is None:
        return function(*args, **kwargs)
    from sqlalchemy.util.concurrency import await_only, in_greenlet

    if not in_greenlet():
        return function(*args, **kwargs)
    return await_only(in_thread(function, *args, **kwargs))


@contextmanager
def encoder_errors(encoder: str) -> Iterator[None]:
    """Make whatever an encoder raises an ``Exception``, so that it ends no thread or program.

    :param encoder: its name.
    :raises EncoderPanicError: it raised anything else. Ctrl-C and what signal handlers raise pass through;
        they interrupt the main thread anywhere.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if threading.current_thread() is threading.main_thread() and _is_of_a_signal(error):
            raise
        raise EncoderPanicError(encoder, error) from error


def _is_of_a_signal(error: BaseException) -> bool:
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {code for code in (getattr(handler, "__code__", None) for handler in handlers) if code}
    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(error, KeyboardInterrupt) or any(frame.f_code in codes for frame, _ in frames)


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
