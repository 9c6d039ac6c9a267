"""The threads that a process may use, and those on which programs under asyncio encode."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pgembed.encoders import threads
from pgembed.encoders.threads import VARIABLE, in_thread
from pgembed.exc import EncoderOptionError

PATIENCE = 60.0  # seconds; what takes longer hangs


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New ones, two at most."""
    monkeypatch.setenv(VARIABLE, "2")
    monkeypatch.setattr(threads, "_executor", None)
    yield
    started: Any = threads._executor
    if started is not None:
        started.shutdown()


async def test_it_is_not_the_default_executor() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    released = threading.Event()
    blocked = asyncio.create_task(asyncio.to_thread(released.wait))
    async with asyncio.timeout(PATIENCE):
        assert (await in_thread(threading.current_thread)).name.startswith("pgembed-async")
    assert not blocked.done()
    released.set()
    await blocked


async def test_calls_begin_in_order_and_no_more_at_once_than_the_limit(
    two_threads: None,
) -> None:
    begun, running, most = [], 0, 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal running, most
        with lock:
            begun.append(number)
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    await asyncio.gather(*(in_thread(work, number) for number in range(12)))
    assert most == 2
    assert all(abs(place - number) <= 1 for place, number in enumerate(begun))


async def test_context_and_errors_are_those_of_a_call() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def work(*, given: str) -> str:
        try:
            return f"{given} {variable.get()}"
        finally:
            variable.set("of the thread")

    variable.set("of the caller")
    assert await in_thread(work, given="the value") == "the value of the caller"
    assert variable.get() == "of the caller"
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


async def test_a_cancelled_call_leaves_the_queue(two_threads: None) -> None:
    released, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        released.wait(PATIENCE)
        return number

    tasks = [asyncio.create_task(in_thread(work, number)) for number in range(5)]
    while len(begun) < 2:
        await asyncio.sleep(0.001)
    for task in (tasks[0], tasks[3]):  # one that has begun, and one that waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    released.set()
    assert await asyncio.gather(tasks[1], tasks[2], tasks[4]) == [1, 2, 4]
    assert sorted(begun) == [0, 1, 2, 4]


def test_many_event_loops_share_them(two_threads: None) -> None:
    names: set[str] = set()

    async def several(first: int) -> list[int]:
        async def one(number: int) -> int:
            names.add((await in_thread(threading.current_thread)).name)
            return await in_thread(abs, number)

        return list(await asyncio.gather(*(one(first + number) for number in range(10))))

    with ThreadPoolExecutor(3) as loops:
        found = list(loops.map(lambda first: asyncio.run(several(first)), (0, 10, 20)))
    assert found == [list(range(first, first + 10)) for first in (0, 10, 20)]
    assert len(names) <= 2


async def test_an_encoder_that_runs_an_event_loop_of_its_own_does_not_wait_for_itself(
    two_threads: None,
) -> None:
    def nested() -> str:
        return asyncio.run(in_thread(lambda: threading.current_thread().name))

    async with asyncio.timeout(PATIENCE):
        names = await asyncio.gather(*(in_thread(nested) for _ in range(6)))
    assert all(name.startswith("pgembed-async") for name in names)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
async def test_a_size_that_is_not_a_number(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(
        EncoderOptionError, match=rf"{VARIABLE} is .*, expected a number of threads, 1 or more"
    ):
        await in_thread(len, "x")


def test_the_end_of_a_program_waits_for_what_has_begun_and_for_nothing_else() -> None:
    program = """
import asyncio, threading
from pgembed.encoders.threads import in_thread

begun, ended = threading.Event(), threading.Event()

def work(number):
    begun.set()
    ended.wait()
    print("done", number, flush=True)

async def main():
    tasks = [asyncio.create_task(in_thread(work, number)) for number in range(3)]
    while not begun.is_set():
        await asyncio.sleep(0.001)

asyncio.run(main())
print("end", flush=True)
ended.set()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={VARIABLE: "1"},
        check=True,
    )
    assert done.stdout.split("\n") == ["end", "done 0", ""]
    assert done.stderr == ""


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores to run on, and control files that the test may write."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_CGROUP_V1_QUOTA", tmp_path / "quota")
    monkeypatch.setattr(threads, "_CGROUP_V1_PERIOD", tmp_path / "period")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"quota": "300000\n", "period": "100000\n"}, 3),
        ({"quota": "-1\n", "period": "100000\n"}, 8),
    ],
)
def test_threads_of_a_container(cgroup: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        (cgroup / name).write_text(content)
    assert threads.available_threads() == expected
