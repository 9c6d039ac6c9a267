"""What docs/columns.md says of :class:`pgembed.testing.HashEncoder`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text

from pgembed import embedding_column
from pgembed.columns import embeddings_of

GUIDE = Path(__file__).parents[2] / "docs" / "columns.md"


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As the guide makes it."""
    monkeypatch.setenv("TESTING", "1")
    section = GUIDE.read_text(encoding="utf-8").partition("## In your tests")[2]
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], names)
    return names["minilm"]


def test_texts_that_share_words_are_near(encoder: Any) -> None:
    texts = ["reset my password", "password forgotten", "the printer smokes", "reset my password"]
    vectors = encoder.encode_documents(texts)
    assert vectors.shape == (4, 384)
    assert vectors[0].tolist() == vectors[3].tolist()
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert encoder.calls == [tuple(texts)]


def test_another_process_computes_the_same(encoder: Any) -> None:
    code = (
        "from pgembed.testing import HashEncoder as H; print(H(384).encode_queries(['a word'])[0].tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(encoder.encode_documents(["a word"])[0].tolist())


def test_it_takes_the_place_of_an_encoder(encoder: Any) -> None:
    column = embedding_column("words", encoder=encoder, name="vec").column
    table = Table("note", MetaData(), Column("id", Integer, primary_key=True), Column("words", Text), column)
    (embedding,) = embeddings_of(table)
    assert embedding.declaration.encoder.fingerprint == encoder.fingerprint
