"""Our vectors are those of sentence-transformers, whatever the text and its company in a batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pgembed.encoders import Encoder
from tests.unit.encoders.models import GOLDEN


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads((GOLDEN / "minilm_texts.json").read_text())


@pytest.fixture(scope="module")
def golden() -> np.ndarray:
    return np.load(GOLDEN / "minilm_vectors.npy")


def test_batch_of_many_lengths_equals_reference(
    minilm: Encoder, texts: list[str], golden: np.ndarray
) -> None:
    vectors = minilm.encode_documents(texts)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - golden).max() < 1e-5


def test_vector_does_not_depend_on_company(minilm: Encoder, texts: list[str], golden: np.ndarray) -> None:
    shuffled = np.random.default_rng(3).permutation(len(texts))
    vectors = minilm.encode_documents([texts[i] for i in shuffled])
    assert np.abs(vectors - golden[shuffled]).max() < 1e-5
    for index in range(0, len(texts), 7):
        alone = minilm.encode_queries([texts[index]])
        assert alone.shape == (1, 384)
        assert np.abs(alone[0] - golden[index]).max() < 1e-5


def test_vectors_have_length_one(minilm: Encoder, texts: list[str]) -> None:
    assert np.allclose(np.linalg.norm(minilm.encode_documents(texts), axis=1), 1.0, atol=1e-6)


def test_limit_is_256_tokens_with_special_ones(minilm: Encoder) -> None:
    assert minilm.max_tokens == 256
    words = ["one"] * 253
    vectors = minilm.encode_documents(
        [
            " ".join(words),
            " ".join([*words, "two"]),
            " ".join([*words, "two", "three"]),
            " ".join([*words, "four"]),
        ]
    )
    assert np.abs(vectors[1] - vectors[2]).max() < 1e-6  # the 255th word is cut
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3  # the 254th is not
    assert np.abs(vectors[1] - vectors[3]).max() > 1e-4


def test_fewer_tokens_on_request(minilm_folder: Path) -> None:
    with Encoder(minilm_folder, max_tokens=8) as encoder:
        vectors = encoder.encode_documents(
            ["one two three four five six", "one two three four five six seven"]
        )
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6


def test_fewer_dimensions_are_the_first_ones_rescaled(minilm_folder: Path, minilm: Encoder) -> None:
    full = minilm.encode_documents(["one text"])
    with Encoder(minilm_folder, dimensions=64) as encoder:
        kept = encoder.encode_documents(["one text"])
    assert kept.shape == (1, 64)
    assert np.allclose(kept, full[:, :64] / np.linalg.norm(full[:, :64]), atol=1e-6)


def test_prompts_are_put_in_front(minilm_folder: Path, minilm: Encoder) -> None:
    with Encoder(minilm_folder, query_prompt="query: ", document_prompt="passage: ") as encoder:
        assert np.allclose(encoder.encode_queries(["x"]), minilm.encode_documents(["query: x"]), atol=1e-6)
        assert np.allclose(
            encoder.encode_documents(["x"]), minilm.encode_documents(["passage: x"]), atol=1e-6
        )
