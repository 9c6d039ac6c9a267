"""Several batches under way at once, as on a GPU: the same code, with the CPU as its device."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder
from pgembed.encoders.onnx import lanes, runtime
from pgembed.encoders.onnx.device import Device
from pgembed.encoders.onnx.feeds import packed, padded, without_prompt
from pgembed.encoders.text.tokenizer import Tokens

PLAN = runtime.plan
TEXTS = [f"reset the password {i} " + "printer " * (i % 9) for i in range(300)]


@pytest.fixture
def with_lanes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Encoder]:
    """Encoders with three lanes, small batches and small windows."""
    monkeypatch.setattr(runtime, "plan", lambda *given: dataclasses.replace(PLAN(*given), runs=3, budget=64))
    monkeypatch.setattr(runtime, "_WINDOW", 32)
    return lambda folder: Encoder(folder, device="cpu")


@pytest.fixture(scope="module", params=["bert", "pooling", "xlm-roberta", "words"])
def folder(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Path:
    """``pooling`` leaves its prompt out of the pooling, ``words`` has texts without any token."""
    return tiny(request.param)


def test_same_vectors(folder: Path, with_lanes: Callable[[Path], Encoder]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "plan", PLAN)
        whole = Encoder(folder, device="cpu").encode_counted(TEXTS, "document")
    with with_lanes(folder) as encoder:
        vectors, counts = encoder.encode_counted(TEXTS, "document")
        assert np.allclose(vectors, whole[0], rtol=1e-5, atol=1e-5)
        assert np.array_equal(counts, whole[1])
        with ThreadPoolExecutor(5) as pool:  # more callers than lanes
            parts = list(pool.map(lambda i: encoder.encode_documents(TEXTS[i::10]), range(10)))
    for index, part in enumerate(parts):
        assert np.allclose(part, whole[0][index::10], rtol=1e-5, atol=1e-5)


def test_lanes_work_at_the_same_time(
    folder: Path, with_lanes: Callable[[Path], Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most, calls = 0, 0, 0
    lock, together = threading.Lock(), threading.Barrier(2)
    run = lanes.Lane.run

    def counted(self: lanes.Lane, feed: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal busy, most, calls
        with lock:
            busy, calls = busy + 1, calls + 1
            most, first = max(most, busy), calls <= 2
        try:
            if first:
                together.wait(30)  # fails where one batch runs after the other
            return run(self, feed)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(lanes.Lane, "run", counted)
    with with_lanes(folder) as encoder:
        encoder.encode_documents([f"{text} {index}" for index in range(10) for text in TEXTS])
    assert 2 <= most <= 3


def test_a_batch_that_fails(
    folder: Path, with_lanes: Callable[[Path], Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, no lane is lost, and what was written into the memory before does no harm."""
    with with_lanes(folder) as encoder:
        before = encoder.encode_documents(TEXTS)
        backend = encoder._opened()
        assert isinstance(backend, runtime.OnnxRuntime)
        tokenizer = backend._tokenizer

        class BeyondTheTable:
            leading = tokenizer.leading

            def __call__(self, texts: list[str]) -> Tokens:
                tokens = tokenizer(texts)
                return dataclasses.replace(tokens, ids=tokens.ids + 1_000_000)

        monkeypatch.setattr(backend, "_tokenizer", BeyondTheTable())
        for _ in range(5):
            with pytest.raises(Exception, match=r"out of (data )?bounds"):
                encoder.encode_documents(TEXTS)
        monkeypatch.setattr(backend, "_tokenizer", tokenizer)
        assert np.allclose(encoder.encode_documents(TEXTS), before, rtol=1e-5, atol=1e-5)


def test_memory_is_used_again() -> None:
    buffers = lanes.Buffers(Device("cpu"))
    first = buffers.array("ids", (3, 1000), np.int64)
    place = first.ctypes.data
    assert place % 4096 == 0  # whole pages, as CUDA locks them
    first[:] = 7
    again = buffers.array("ids", (2, 5), np.int32)
    assert (again.ctypes.data, again.shape, again.dtype) == (place, (2, 5), np.int32)
    assert again.flags.c_contiguous
    assert buffers.array("mask", (2, 5), np.int32).ctypes.data != place
    large = buffers.array("ids", (3, 100_000), np.int64)
    assert large.nbytes == 2_400_000
    assert (first == 7)[1:].all()  # what is still held stays whole
    assert buffers.array("ids", (3, 1000), np.int64).ctypes.data == large.ctypes.data
    assert buffers.array("none", (0, 8), np.int64).shape == (0, 8)


@pytest.mark.parametrize("feeder", [padded, packed])
def test_old_content_does_not_shine_through(feeder: Callable[..., dict[str, np.ndarray]]) -> None:
    tokens = Tokens.of([[1, 2, 3], [], [4], [5, 6]], limit=8)
    buffers = lanes.Buffers(Device("cpu"))
    for batch in (np.array([0, 3, 2, 1]), np.array([3, 2]), np.array([1]), np.array([0])):
        fresh = feeder(tokens, batch)
        without_prompt(fresh, 1)
        for name, array in fresh.items():
            buffers.array(name, array.shape, array.dtype).fill(99)
        kept = feeder(tokens, batch, buffers.array)
        without_prompt(kept, 1, buffers.array)
        assert kept.keys() == fresh.keys()
        for name, array in fresh.items():
            assert np.array_equal(kept[name], array), name
            assert (kept[name].dtype, kept[name].shape) == (array.dtype, array.shape)
            assert kept[name].ctypes.data == buffers.array(name, (1,), np.int8).ctypes.data
