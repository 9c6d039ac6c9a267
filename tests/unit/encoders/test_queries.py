"""The path of queries: remembered vectors, two towers, and not blocking the event loop."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder
from pgembed.encoders.text.texts import RecentVectors
from pgembed.exc import EncoderError, EncoderOptionError


@pytest.fixture(scope="module")
def towers(tiny: Callable[[str], Path]) -> tuple[Path, Path]:
    """Two encoders of as many dimensions."""
    return tiny("bert"), tiny("static")


def test_two_towers(towers: tuple[Path, Path]) -> None:
    documents, queries = (Encoder(folder) for folder in towers)
    both = Encoder(towers[0], query_encoder=towers[1])
    assert np.array_equal(both.encode_documents(["a text"]), documents.encode_documents(["a text"]))
    assert np.array_equal(both.encode_queries(["a text"]), queries.encode_queries(["a text"]))
    assert both.fingerprint == documents.fingerprint  # it stands for what is stored
    copied = pickle.loads(pickle.dumps(both))
    assert np.array_equal(copied.encode_queries(["a text"]), queries.encode_queries(["a text"]))


def test_two_towers_in_one_folder(tiny: Callable[[str], Path]) -> None:
    """A model with a router becomes one encoder; its vectors are compared in ``test_families``."""
    folder = tiny("router")
    encoder, queries = Encoder(folder), Encoder(folder / "query")
    assert encoder.spec.query_fingerprint == queries.spec.query_fingerprint != encoder.fingerprint
    assert np.array_equal(encoder.encode_queries(["a text"]), queries.encode_queries(["a text"]))
    assert np.abs(encoder.encode_queries(["a text"]) - encoder.encode_documents(["a text"])).max() > 0.01
    half = pickle.loads(pickle.dumps(Encoder(folder, dimensions=12)))
    assert half.encode_queries(["a text"]).shape == half.encode_documents(["a text"]).shape == (1, 12)
    with half:
        half.encode_queries(["a text"])
    with pytest.raises(EncoderError, match="closed"):
        half.encode_queries(["another"])


def test_towers_of_other_dimensions(towers: tuple[Path, Path]) -> None:
    with pytest.raises(EncoderOptionError, match="query_encoder is 'one of 8 dimensions', expected 24"):
        Encoder(towers[0], query_encoder=Encoder(towers[1], dimensions=8))


async def test_event_loop_goes_on(towers: tuple[Path, Path]) -> None:
    encoder = Encoder(towers[0])
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    spinning = asyncio.create_task(turn())
    queries, documents = await asyncio.gather(
        encoder.aencode_queries(["a", "b"]), encoder.aencode_documents(f"text {i}" for i in range(300))
    )
    spinning.cancel()
    assert (queries.shape, documents.shape) == ((2, 24), (300, 24))
    assert turns > 10


def test_recent_queries_are_remembered() -> None:
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(texts)
        lengths = np.array([len(text) for text in texts])
        return lengths[:, None].astype(np.float32), lengths

    def through(texts: list[str]) -> list[int]:
        vectors, counts = recent.through(texts, encode, 1)
        assert vectors[:, 0].tolist() == counts.tolist()
        vectors[:] = 0  # the caller's own
        return counts.tolist()

    recent = RecentVectors(3)
    assert through(["a", "bb"]) == [1, 2]
    assert through(["bb", "ccc", "a"]) == [2, 3, 1]
    assert through(["a", "dddd"]) == [1, 4]
    through(["bb"])  # the one that was not asked for the longest has gone
    assert asked == [["a", "bb"], ["ccc"], ["dddd"], ["bb"]]
    asked.clear()
    for _ in range(2):
        RecentVectors(0).through(["a"], encode, 1)
    assert asked == [["a"], ["a"]]
    assert through([]) == []
