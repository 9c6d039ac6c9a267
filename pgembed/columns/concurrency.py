"""Running an encoder without blocking an event loop."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def off_event_loop(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call ``function``; under an async engine or session, on a thread while the event loop goes on.

    SQLAlchemy's asyncio extension runs its synchronous internals (flushes, bind processors) in a greenlet,
    and lets such code await by switching to the greenlet of the loop. Outside of it, this is a plain call.
    The thread is one of :mod:`pgembed.encoders.threads`. Errors of ``function`` reach the caller as they
    are; context variables are those of the caller.
    """
    # Without greenlet nothing runs in one, and SQLAlchemy's own functions raise.
    if find_spec("greenlet") is None:
        return function(*args, **kwargs)
    from sqlalchemy.util.concurrency import await_only, in_greenlet

    if not in_greenlet():
        return function(*args, **kwargs)
    from pgembed.encoders.threads import in_thread

    return await_only(in_thread(function, *args, **kwargs))
