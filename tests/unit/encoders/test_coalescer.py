"""Requests that share an encoder: in passes, in turn, each with its own failures."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from pgembed.encoders.serving.coalescer import Answers, BusyError, Coalescer, Job
from pgembed.exc import EncoderError


class Panic(BaseException):
    """As the tokenizers package raises them."""


class Recorder:
    """An encoder that records its passes and at first waits, and its coalescer.

    :param max_tokens: ``None`` for an encoder that does not say.
    """

    name = "recorder"

    def __init__(self, *, max_tokens: int | None = 256, **limits: Any) -> None:
        if max_tokens is not None:
            self.max_tokens = max_tokens
        self.passes: list[list[str]] = []
        self.answered: list[str] = []
        self.started, self.go_on = threading.Event(), threading.Event()
        self.coalescer = Coalescer(self, self.reply, **limits)  # type: ignore[arg-type]

    def encode_counted(self, texts: list[str], kind: str) -> tuple[np.ndarray, np.ndarray]:
        self.passes.append(list(texts))
        self.started.set()
        assert self.go_on.wait(10)
        time.sleep(0.0001 * len(texts))
        if "poison" in texts:
            raise EncoderError("poison")
        if "panic" in texts:
            raise Panic("panic")
        lengths = np.array([len(text) for text in texts])
        return lengths[:, None].astype(np.float32), lengths

    def reply(self, answers: Answers) -> None:
        for job, result in answers:
            self.answered.append(job.texts[0])
            job.reply(result)

    def submit(self, *texts: str, kind: Any = "document", wanted: bool = True, age: float = 0) -> Future[Any]:
        """``age``: the seconds that it has waited already."""
        future: Future[Any] = Future()
        since = time.monotonic() - age
        self.coalescer.submit(Job(list(texts), kind, future.set_result, lambda: wanted, since=since))
        return future


def long_texts(count: int, mark: str) -> list[str]:
    return [f"{mark}{number} ".ljust(1000, "x") for number in range(count)]


def test_what_waits_is_encoded_together() -> None:
    recorder = Recorder(max_tokens=None, texts=4)
    futures = [recorder.submit("a")]
    recorder.started.wait(10)
    futures.append(recorder.submit("bb"))
    futures.append(recorder.submit("query", kind="query"))
    futures += [recorder.submit(*texts) for texts in (["ccc", "dddd"], ["e", "f"], ["g"])]
    recorder.go_on.set()
    answers = [future.result(10)[0].tolist() for future in futures]
    assert answers == [[[1]], [[2]], [[5]], [[3], [4]], [[1], [1]], [[1]]]
    # the oldest goes first, with all of its kind that fit
    assert recorder.passes == [["a"], ["bb", "ccc", "dddd", "g"], ["query"], ["e", "f"]]
    assert recorder.submit("one", "three").result(10)[1].tolist() == [3, 5]
    assert str(recorder.submit("poison").result(10)) == "poison"
    assert recorder.submit("still here").result(10)[0].tolist() == [[10]]
    recorder.coalescer.close()
    with pytest.raises(BusyError, match="stopped"):
        recorder.submit("too late")


def test_callers_that_need_no_answer() -> None:
    recorder = Recorder(max_tokens=None, waiting=3, seconds=60)
    first = recorder.submit("a")
    recorder.started.wait(10)
    gone, late = recorder.submit("gone", wanted=False), recorder.submit("late", age=61)
    fresh = recorder.submit("fresh")
    with pytest.raises(BusyError, match="too many"):
        recorder.submit("one too many")
    recorder.go_on.set()
    assert first.result(10)[0].tolist() == [[1]]
    assert str(late.result(10)) == "no answer within 60 seconds"
    assert fresh.result(10)[0].tolist() == [[5]]
    recorder.coalescer.close()
    assert str(gone.result(10)) == "nobody waits for the answer"
    assert recorder.passes == [["a"], ["fresh"]]


@pytest.mark.parametrize("kind", ["document", "query"])
def test_a_short_text_does_not_wait_for_many_long_ones(kind: str) -> None:
    recorder = Recorder()
    large = [recorder.submit(*long_texts(400, mark)) for mark in "abc"]
    recorder.started.wait(10)
    short = recorder.submit("short", kind=kind)
    recorder.go_on.set()
    assert short.result(10)[0].tolist() == [[5]]
    assert "short" in [text for texts in recorder.passes[:3] for text in texts]
    for future, mark in zip(large, "abc", strict=True):
        vectors, counts = future.result(10)  # whole, and in order
        assert counts.tolist() == vectors[:, 0].tolist() == [1000] * 400
        assert [text for texts in recorder.passes for text in texts if text[0] == mark] == long_texts(
            400, mark
        )
    assert recorder.answered[0] == "short"
    recorder.coalescer.close()


def test_many_short_texts_do_not_starve_a_long_request() -> None:
    """However many come, it gets its share."""
    recorder = Recorder()
    recorder.go_on.set()
    large = recorder.submit(*long_texts(100, "a"))
    others: list[Future[Any]] = []
    for number in range(5000):
        others.append(recorder.submit(f"short {number} ".ljust(500, "y")))
        if large.done():
            break
        others[max(0, number - 40)].result(10)  # forty always wait
    assert large.done()
    assert [future.result(10)[0].shape for future in others] == [(1, 1)] * len(others)
    recorder.coalescer.close()


def test_large_requests_share_alike() -> None:
    recorder = Recorder()
    futures = [recorder.submit(*long_texts(60, mark)) for mark in "abcd"]
    recorder.go_on.set()
    for future in futures:
        future.result(10)
    order = [text[0] for texts in recorder.passes for text in texts]
    first_half = order[: len(order) // 2]
    assert min(first_half.count(mark) for mark in "abcd") >= 20
    recorder.coalescer.close()


def test_one_text_fails_for_its_own_request_alone() -> None:
    recorder = Recorder()
    futures = [recorder.submit("first")]
    recorder.started.wait(10)
    futures += [recorder.submit(text, "more") for text in ("good", "poison", "panic", "better")]
    recorder.go_on.set()
    results = [future.result(10) for future in futures]
    assert [isinstance(result, tuple) for result in results] == [True, True, False, False, True]
    assert [str(result) for result in results[2:4]] == ["poison", "panic"]
    assert recorder.submit("afterwards").result(10)[0].tolist() == [[10]]
    recorder.coalescer.close()


def test_a_large_request_that_fails_is_over() -> None:
    recorder = Recorder()
    recorder.go_on.set()
    texts = long_texts(200, "a")
    texts[50] = "panic"
    assert isinstance(recorder.submit(*texts).result(10), Panic)
    assert recorder.submit("afterwards").result(10)[0].tolist() == [[10]]
    recorder.coalescer.close()
    assert not any(texts[199] in together for together in recorder.passes)
