"""What encoders and rerankers have in common: a source, opened at the first use, shared by threads."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Any, Self

from pgembed.encoders.sources import Backend, Source
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.threads import encoder_errors
from pgembed.exc import EncoderError


class SharedModel:
    """A model that is cheap to make; its weights are opened by the first call that computes something.

    It is safe to use from several threads at once, a copy of it is itself, and a forked child opens its own
    session.
    """

    #: What it is called in errors.
    noun = "model"

    _source: Source

    def _begin(self, source: Source) -> None:
        """Set what describes the model; nothing else of it is copied or pickled."""
        self._source = source
        self._lock = threading.RLock()
        self._backend: Backend | None = None
        self._closed = False
        self._cut = 0
        self._spec = source.early_spec()
        _alive.add(self)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name in the spec, or the given one as long as no spec has been read."""
        return self._source.name if self._spec is None else self._spec.name

    @property
    def spec(self) -> EncoderSpec:
        """Everything that decides the results, with the given options in place.

        :raises EncoderNotFoundError: only a fingerprint was stated, and there is no such model here.
        """
        with self._lock:
            if self._spec is None:
                self._spec = self._source.spec()
            return self._spec

    @property
    def fingerprint(self) -> str:
        """What decides the results, as 32 hex digits; see :class:`EncoderSpec`."""
        return self._source.fingerprint or self.spec.fingerprint

    @property
    def options(self) -> dict[str, Any]:
        """The given arguments that decide results, such as ``max_tokens`` and ``precision="int8"``.

        With :attr:`name` and :attr:`fingerprint` (and the dimensions of an encoder) they make the same model
        elsewhere.
        """
        return self._source.stated

    @property
    def max_tokens(self) -> int:
        """Tokens at which texts are cut, special tokens and prompt included."""
        return self.spec.max_tokens

    @property
    def cut(self) -> int:
        """How many texts, or pairs of texts, so far were longer than :attr:`max_tokens`."""
        return self._cut

    def _shown(self) -> list[str]:
        """What ``repr`` shows."""
        shown = [self._source.label]
        if self._spec is not None or self._source.fingerprint is not None:
            shown.append(f"fingerprint={self.fingerprint[:8]}...")
        return shown

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self._shown())}>"

    # --- open and closed --------------------------------------------------------------------------

    def open(self) -> None:
        """Open the weights now instead of at the first use."""
        with encoder_errors(self.name):
            self._opened()

    def close(self) -> None:
        """Free the memory of the weights; what is closed cannot compute anything."""
        with self._lock:
            self._closed = True
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Backend:
        backend = self._backend
        if backend is not None:
            return backend
        with self._lock:
            self._check_open()
            if self._backend is None:
                self._backend = self._source.backend()
            return self._backend

    def _check_open(self) -> None:
        if self._closed:
            raise EncoderError(f"{self.noun} {self.name!r} is closed: make a new one")

    # --- copies: a model is a shared resource, described by its arguments ---------------------------

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def _after_fork(self) -> None:
        """Forget, in the child, the parent's session, whose threads do not exist here, or its connections."""
        self._lock = threading.RLock()
        self._backend = None


_alive: weakref.WeakSet[SharedModel] = weakref.WeakSet()


def _after_fork() -> None:
    for model in list(_alive):
        model._after_fork()


# After the hook of pgembed.encoders.forks, which keeps sessions: hooks run in the order of registration.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
