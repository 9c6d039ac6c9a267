"""Texts that nobody would write: each has a defined vector, or an error of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder
from pgembed.exc import TextError

STRANGE = [
    "",
    "a\x00b",
    "\x00",
    "   ",
    "\ufeff",
    "\u202e",
    "\U0001d54f" * 40,
    "e\u0301" * 40,
    "\x1b[31m",
    "qqq zzz",
]


@pytest.fixture(scope="module", params=["bert", "roberta", "modernbert", "static", "words"])
def encoder(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Encoder:
    return Encoder(tiny(request.param))


def test_each_has_a_vector_that_its_neighbours_do_not_change(encoder: Encoder) -> None:
    together = encoder.encode_documents([*STRANGE, "an ordinary text " * 9])
    assert np.isfinite(together).all()
    for text, vector in zip(STRANGE, together, strict=False):
        assert np.allclose(encoder.encode_documents([text])[0], vector, atol=1e-5), repr(text)


def test_nothing_in_the_vocabulary(tiny: Callable[[str], Path]) -> None:
    """The mean of no words is the zero vector, not NaN; what follows is computed from that."""
    encoder = Encoder(tiny("static"))
    empty, known = encoder.encode_documents(["", "the printer"])
    assert not empty.any()
    assert np.linalg.norm(known) == pytest.approx(1)


def test_a_hundred_thousand_texts(tiny: Callable[[str], Path]) -> None:
    """More than are tokenised together, some of them again and again, one of them no text at all."""
    encoder = Encoder(tiny("static"))
    texts = [f"printer {index % 40_000}" for index in range(100_000)]
    vectors = encoder.encode_documents(texts)
    assert vectors.shape == (100_000, 24)
    places = np.array([0, 16_383, 16_384, 39_999, 40_000, 80_000, 99_999])
    alone = encoder.encode_documents([texts[place] for place in places])
    assert np.allclose(vectors[places], alone, atol=1e-6)
    assert np.array_equal(vectors[:20_000], vectors[80_000:])
    texts[77_777] = None  # type: ignore[call-overload]
    with pytest.raises(TextError, match="text 77777") as caught:
        encoder.encode_documents(texts)
    assert caught.value.position == 77_777
