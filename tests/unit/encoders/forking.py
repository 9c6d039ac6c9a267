"""A program that opens an encoder, forks in every way that one can, and prints how the children end.

``python forking.py FOLDER``, or ``python forking.py FOLDER pairs`` with a reranker; the output is a JSON
object of scenario to exit status, ``null`` for a child that had to be killed.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from pgembed.encoders import Encoder, Reranker

PATIENCE = 30.0
TEXTS = [f"text {i}" for i in range(40)]


class Judge(Reranker):
    """A reranker that is used as an encoder is: each text is one of a pair."""

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        return self.predict([("a query", text) for text in texts])

    async def aencode_documents(self, texts: list[str]) -> np.ndarray:
        return await self.apredict([("a query", text) for text in texts])

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        return self.predict([(text, "a text") for text in texts])

    def count_cut(self, texts: list[str]) -> int:
        return super().count_cut([("a query", text) for text in texts])


Model = Judge if sys.argv[2:] == ["pairs"] else Encoder
encoder = Model(sys.argv[1]) if len(sys.argv) > 1 else None
scenarios: dict[str, Callable[[], object]] = {}


def scenario(function: Callable[[], object]) -> Callable[[], object]:
    scenarios[function.__name__] = function
    return function


def status(child: Callable[[], object]) -> int | None:
    """Fork; the child does its part and ends as a program does. How it ended, ``None`` if it did not."""
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    return awaited(pid)


def awaited(pid: int) -> int | None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, found = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(found)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def encodes_right() -> None:
    assert np.allclose(encoder.encode_documents(TEXTS), VECTORS, atol=1e-6)
    assert np.allclose(encoder.encode_queries(TEXTS[:1]), QUERY, atol=1e-6)


@scenario
def nothing() -> None: ...


@scenario
def exits_with_7() -> None:
    sys.exit(7)


@scenario
def exits_with_a_message() -> None:
    sys.exit("a message")


@scenario
def raises() -> None:
    raise RuntimeError("meant")


@scenario
def exits_at_once_with_5() -> None:
    os._exit(5)


@scenario
def is_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@scenario
def encodes_and_exits_with_3() -> None:
    encodes_right()
    sys.exit(3)


@scenario
def encodes_under_asyncio() -> None:
    assert np.allclose(asyncio.run(encoder.aencode_documents(TEXTS)), VECTORS, atol=1e-6)


@scenario
def only_closes() -> None:
    encoder.close()


@scenario
def forgets() -> None:
    global encoder
    encoder = None


@scenario
def opens_another() -> None:
    with Model(sys.argv[1]) as another:
        assert np.allclose(another.encode_documents(TEXTS), VECTORS, atol=1e-6)


@scenario
def has_a_child_that_encodes_and_exits_with_6() -> None:
    def grandchild() -> None:
        encodes_right()
        sys.exit(6)

    sys.exit(status(grandchild))


@scenario
def encodes_and_has_a_child_that_does() -> None:
    encodes_right()
    assert status(encodes_right) == 0


@scenario
def becomes_another_program() -> None:
    os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(8)"])


def output() -> str:
    """What children leave behind when they end: handlers of before and after the fork, and buffers."""
    reading, writing = os.pipe()
    atexit.register(lambda: os.getpid() == parent or os.write(writing, b"before, "))

    def child() -> None:
        atexit.register(os.write, writing, b"after, ")
        os.dup2(writing, 1)
        sys.stdout.write("Python's buffer, ")
        libc = ctypes.CDLL(None)
        libc.printf(b"libc's buffer, ")
        libc.strdup.restype = ctypes.c_void_p  # outlives Python
        text = ctypes.c_void_p(libc.strdup(b"libc's handler"))
        libc.__cxa_atexit(ctypes.cast(libc.puts, ctypes.c_void_p), text, None)
        sys.exit(9)

    parent = os.getpid()
    sys.stdout.flush()
    assert status(child) == 9
    os.close(writing)
    with open(reading, "rb") as pipe:
        return pipe.read().decode()


def while_another_thread_encodes() -> list[int | None]:
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            encoder.encode_documents([f"{number} {text}" for text in TEXTS])
            encoder.encode_queries([str(time.monotonic())])
            encoder.count_cut(TEXTS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        return [status(encodes_right) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def work(sent: Encoder | Judge) -> None:
    assert len(sent.encode_documents(TEXTS)) == len(TEXTS)
    sys.exit(4)


def processes(method: str) -> int | None:
    process = multiprocessing.get_context(method).Process(target=work, args=(encoder,))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


if __name__ == "__main__":
    import onnxruntime  # noqa: F401

    found: dict[str, object] = {"imported_only": status(nothing)}
    VECTORS, QUERY = asyncio.run(encoder.aencode_documents(TEXTS)), encoder.encode_queries(TEXTS[:1])
    found |= {name: status(child) for name, child in scenarios.items()}
    found["while_another_thread_encodes"] = while_another_thread_encodes()
    found |= {method: processes(method) for method in ("fork", "forkserver", "spawn")}
    encoder.close()
    found["after_closing"] = status(exits_with_7)
    found["output"] = output()
    print(json.dumps(found))
