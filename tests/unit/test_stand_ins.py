"""Encoders that stand in for those that models declare."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text

from pgembed import Encoder, TextEncoder, embedding_column
from pgembed.columns import embeddings_of
from pgembed.columns.registration import RegisterEmbedding
from pgembed.exc import DeclarationError
from pgembed.queries.core.parameters import QueryText
from pgembed.testing import HashEncoder, StandIn, encoder_swapped

#: Its files are nowhere.
DECLARED = Encoder("all-MiniLM-L6-v2", fingerprint="f" * 32, dimensions=8, max_tokens=64)


def declared(*encoders: TextEncoder) -> MetaData:
    """Tables with an embedding column each."""
    metadata = MetaData()
    for number, encoder in enumerate(encoders):
        column = embedding_column("words", encoder=encoder, name="vec").column
        Table(
            f"note{number}", metadata, Column("id", Integer, primary_key=True), Column("words", Text), column
        )
    return metadata


def encoders(metadata: MetaData) -> list[TextEncoder]:
    return [
        embedding.declaration.encoder
        for table in metadata.sorted_tables
        for embedding in embeddings_of(table)
    ]


def registrations(metadata: MetaData) -> list[dict[str, Any]]:
    return [
        RegisterEmbedding(index).facts
        for table in metadata.sorted_tables
        for index in table.indexes
        if hasattr(index, "embedding")
    ]


def test_a_stand_in_says_what_the_declared_encoder_says() -> None:
    own = HashEncoder(3, name="own")
    metadata = declared(DECLARED, own, DECLARED)
    before = registrations(metadata)
    assert [facts.get("options") for facts in before] == [{"max_tokens": 64}, None, {"max_tokens": 64}]
    with encoder_swapped(metadata) as stand_ins:
        assert [stand_in.original for stand_in in stand_ins] == [DECLARED, own]
        first, second, third = encoders(metadata)
        assert first is third is stand_ins[0]
        assert second is stand_ins[1]
        assert isinstance(first, TextEncoder)
        assert (first.name, first.fingerprint, first.dimensions) == ("all-MiniLM-L6-v2", "f" * 32, 8)
        assert registrations(metadata) == before
        assert copy.deepcopy(first) is first
        vectors = first.encode_documents(["a word"])
        assert vectors.tolist() == HashEncoder(8).encode_documents(["a word"]).tolist()
        assert second.encode_queries(iter(["x"])).shape == (1, 3)
        assert (stand_ins[0].calls, stand_ins[1].calls) == ([("a word",)], [("x",)])
        with pytest.raises(AttributeError, match="nothing"):
            first.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert encoders(metadata) == [DECLARED, own, DECLARED]
    assert registrations(metadata) == before


async def test_a_stand_in_opens_nothing() -> None:
    with encoder_swapped(declared(DECLARED)) as (stand_in,):
        stand_in.open()
        documents = await stand_in.aencode_documents(["a"])
        assert documents.tolist() == (await stand_in.aencode_queries(["a"])).tolist()
        stand_in.close()
    assert isinstance(stand_in, Encoder)


def test_encoders_come_back_after_an_error_and_one_by_one() -> None:
    metadata = declared(DECLARED)
    with encoder_swapped(metadata) as (outer,):
        with encoder_swapped(metadata, HashEncoder(8, name="inner")) as (inner,):
            assert inner.original is outer
            assert inner.fingerprint == "f" * 32
        assert encoders(metadata) == [outer]
    with pytest.raises(ZeroDivisionError), encoder_swapped(metadata):
        1 / 0  # noqa: B018
    assert encoders(metadata) == [DECLARED]


def test_what_cannot_be_swapped() -> None:
    metadata = declared(DECLARED, HashEncoder(3))
    with pytest.raises(DeclarationError, match=r"'hash' has 8 dimensions, expected the 3 of 'hash'"):
        encoder_swapped(metadata, HashEncoder(8)).__enter__()
    assert encoders(metadata)[0] is DECLARED
    for base in (MetaData(), object(), None):
        with pytest.raises(DeclarationError, match="has no embedding column; expected a declarative base"):
            encoder_swapped(base).__enter__()


def test_a_text_that_was_encoded_is_encoded_again_by_another_encoder() -> None:
    """Statements can be constants of a module, and remember their vector."""
    metadata = declared(HashEncoder(8, name="of the models"))
    (embedding,) = embeddings_of(metadata.tables["note0"])
    query = QueryText("a word")
    before = query.vector(embedding.declaration, 8, "note0.vec")
    with encoder_swapped(metadata) as (stand_in,):
        inside = query.vector(embedding.declaration, 8, "note0.vec")
        assert query.vector(embedding.declaration, 8, "note0.vec") is inside
        assert stand_in.calls == [("a word",)]
        assert pickle.loads(pickle.dumps(query)).text == "a word"
    assert inside.tolist() != before.tolist()
    assert query.vector(embedding.declaration, 8, "note0.vec").tolist() == before.tolist()


def test_one_that_is_made_by_hand() -> None:
    assert repr(StandIn(DECLARED, HashEncoder(8))).startswith("<StandIn for <Encoder 'all-MiniLM-L6-v2'")
