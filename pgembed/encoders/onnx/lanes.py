"""Runs of a session that share nothing, so that a GPU computes one while the data of others is copied.

Each lane has its own memory for inputs and outputs, which the session reads and writes directly, batch after
batch. On CUDA the memory is page-locked, so that the GPU can copy it by itself. On the CPU the same code runs
without locking.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import queue
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.onnx.device import Device
from pgembed.encoders.onnx.feeds import Feed
from pgembed.encoders.text.texts import Vectors

_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
_PORTABLE = 1  # cudaHostRegisterPortable


class Buffers:
    """Arrays by name whose memory is reused; it grows and never shrinks.

    :param device: where the arrays go.
    """

    def __init__(self, device: Device) -> None:
        self._lock = _page_lock() if device.kind == "cuda" else None
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The array of that name, with any content; an earlier array of that name is no longer valid."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or len(held) < size:
            held = self._held[name] = self._pages(max(size, 1))
        return held[:size].view(dtype).reshape(shape)

    def _pages(self, size: int) -> npt.NDArray[np.uint8]:
        pages = np.frombuffer(mmap.mmap(-1, 1 << (size - 1).bit_length()), dtype=np.uint8)
        if self._lock is not None:
            register, unregister = self._lock
            if register(pages.ctypes.data, pages.nbytes, _PORTABLE) == 0:  # if not, copying is slower
                weakref.finalize(pages, unregister, pages.ctypes.data).atexit = False
        return pages


class Lane:
    """One run at a time, with its own memory.

    :param session: the session, which lanes share.
    :param device: where it computes.
    :param width: width of the vectors.
    """

    def __init__(self, session: Any, device: Device, width: int) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._width = width
        self.buffers = Buffers(device)

    def run(self, feed: Feed) -> Vectors:
        """The vectors for a feed made in :attr:`buffers`; they are valid until the next run."""
        for name, array in feed.items():
            self._binding.bind_cpu_input(name, array)
        vectors = self.buffers.array("embedding", (len(feed["attention_mask"]), self._width), np.float32)
        place = vectors.ctypes.data
        self._binding.bind_output("embedding", "cpu", 0, np.float32, vectors.shape, place)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return vectors


class Lanes:
    """``count`` lanes of a session; callers wait until one is free."""

    def __init__(self, session: Any, device: Device, width: int, *, count: int) -> None:
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Lane(session, device, width))

    @contextmanager
    def one(self) -> Iterator[Lane]:
        """A lane for the time of the block."""
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)


def _page_lock() -> tuple[Callable[..., int], Callable[..., int]] | None:
    """CUDA's functions to lock and unlock pages, from the library that ONNX Runtime has loaded."""
    for name in _RUNTIMES:
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except (OSError, AttributeError):  # not loaded; or Windows
            continue
        library.cudaHostRegister.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        library.cudaHostUnregister.argtypes = [ctypes.c_void_p]
        return library.cudaHostRegister, library.cudaHostUnregister
    return None
