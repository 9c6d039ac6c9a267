"""The models of the tests of migrations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, Text

from pgembed import embedding_column
from pgembed.columns import TextEncoder


def article(
    *items: Any,
    encoder: TextEncoder | None = None,
    schema: str | None = None,
    naming_convention: dict[str, str] | None = None,
    name: str = "embedding",
    **options: Any,
) -> MetaData:
    """A table with an embedding column; ``encoder=None`` leaves the embedding column out."""
    metadata = MetaData(naming_convention=naming_convention)
    columns: list[Any] = [Column("id", Integer, primary_key=True), Column("title", Text)]
    if encoder is not None:
        columns.append(embedding_column("title", encoder=encoder, name=name, **options).column)
    Table("article", metadata, *columns, *items, schema=schema)
    return metadata
