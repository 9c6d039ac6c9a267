"""The fingerprint changes with what decides the vectors of documents, and with nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from pgembed.encoders import EncoderSpec
from pgembed.exc import EncoderOptionError

SPEC = EncoderSpec(
    name="minilm",
    architecture="bert",
    weights="a" * 64,
    tokenizer="b" * 64,
    width=384,
    dimensions=384,
    max_tokens=256,
    token_limit=512,
)

DECIDING = {
    "architecture": "mpnet",
    "weights": "c" * 64,
    "tokenizer": "d" * 64,
    "width": 768,
    "dimensions": 128,
    "max_tokens": 128,
    "pooling": ("cls",),
    "steps": ("dense:tanh", "normalize"),
    "normalize": False,
    "document_prompt": "passage: ",
    "include_prompt": False,
    "lowercase": True,
    "special_tokens": False,
    "precision": "int8",
}
INDIFFERENT = {
    "name": "other",
    "token_limit": 1024,
    "query_prompt": "query: ",
    "query_tower": "f" * 32,
    "vocabulary": 7,
    "token_vectors": True,
    "files": {"model.onnx": "e" * 64},
    "source": "elsewhere",
}
#: Of a cross-encoder; where there are no labels they decide nothing.
DECIDING_SCORES = {"labels": ("no", "maybe", "yes"), "activation": "softmax", "segments": True}


def test_every_field_is_classified() -> None:
    fields = {field.name for field in dataclasses.fields(EncoderSpec)}
    assert fields == {*DECIDING, *INDIFFERENT, *DECIDING_SCORES}


@pytest.mark.parametrize("field", DECIDING)
def test_deciding(field: str) -> None:
    changed = SPEC.replace(**{field: DECIDING[field]})
    assert changed.fingerprint != SPEC.fingerprint


@pytest.mark.parametrize("field", INDIFFERENT)
def test_indifferent(field: str) -> None:
    changed = SPEC.replace(**{field: INDIFFERENT[field]})
    assert changed.fingerprint == SPEC.fingerprint


@pytest.mark.parametrize("field", DECIDING_SCORES)
def test_deciding_scores(field: str) -> None:
    labels = ("yes", "no", "maybe")
    scores = SPEC.replace(width=3, dimensions=3, labels=labels, activation="identity")
    assert scores.replace(**{field: DECIDING_SCORES[field]}).fingerprint != scores.fingerprint
    if field != "labels":
        assert SPEC.replace(**{field: DECIDING_SCORES[field]}).fingerprint == SPEC.fingerprint


def test_labels_are_the_dimensions() -> None:
    with pytest.raises(EncoderOptionError, match="dimensions is 384, expected 2, one for each label"):
        SPEC.replace(labels=("yes", "no"), activation="identity")


def test_queries_have_their_own() -> None:
    assert SPEC.replace(query_prompt="query: ").query_fingerprint != SPEC.query_fingerprint
    assert SPEC.replace(query_tower="f" * 32).query_fingerprint == "f" * 32
    assert SPEC.replace(document_prompt="passage: ").query_fingerprint == SPEC.query_fingerprint


def test_fingerprints_do_not_change_between_releases() -> None:
    """A changed value would make every row of every user pending."""
    assert SPEC.fingerprint == "7cdaae6d37bc8d43a47bd20c2a4f51c0"
    assert len(SPEC.fingerprint) == 32
