"""The embeddings of a mapped class, by the names of its attributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Null
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.elements import ClauseElement

from pgembed.columns.binding import map_embedding
from pgembed.columns.embedding import INFO, EmbeddingColumn, Freshness, bound
from pgembed.exc import TextError

_F = TypeVar("_F", bound=Freshness)

#: A source whose value only the database will know.
UNKNOWN = object()


@dataclass(frozen=True)
class MappedSources:
    """What is made of texts, and the attributes of a mapper that its digest and its sources are mapped to."""

    embedding: Freshness
    digest: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class MappedEmbedding(MappedSources):
    """An embedding and the attributes of a mapper that its columns are mapped to."""

    embedding: EmbeddingColumn
    vector: str
    links: tuple[str, ...] = ()


#: What each mapper's class has to fill. A mapper's columns are fixed once it is configured.
_known: WeakKeyDictionary[Mapper[Any], tuple[MappedEmbedding, ...]] = WeakKeyDictionary()


def mapped_embeddings(mapper: Mapper[Any]) -> tuple[MappedEmbedding, ...]:
    """The embeddings of a mapped class, its parents' included."""
    found = _known.get(mapper)
    if found is None:
        found = _known[mapper] = tuple(_find(mapper))
    return found


def text_of(value: Any, column: Column[Any]) -> Any:
    """What an INSERT of ``value`` stores: a text, NULL as ``None``, or :data:`UNKNOWN`.

    A column without a value, or with ``None``, gets its default; ``null()`` is NULL.

    :raises TextError: as :func:`given_text`.
    """
    if value is not None:
        return given_text(value, column)
    default = column.default
    if column.server_default is not None or not (default is None or default.is_scalar):
        return UNKNOWN
    return given_text(getattr(default, "arg", None), column)


def given_text(value: Any, column: Column[Any]) -> Any:
    """What an assignment of ``value`` stores: a text, NULL as ``None``, or :data:`UNKNOWN` of an expression.

    :raises TextError: neither; some drivers would store the text that they make of it.
    """
    if value is None or isinstance(value, Null):
        return None
    if isinstance(value, str) or value is UNKNOWN:
        return value
    if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
        return UNKNOWN
    raise TextError(
        f"{column} is a source of an embedding column and takes str, got {type(value).__name__}: "
        f"{repr(value)[:60]}; convert it first, str(...) for example"
    )


def _find(mapper: Mapper[Any]) -> Iterator[MappedEmbedding]:
    for key, column in list(mapper.columns.items()):
        if isinstance(column, Column) and INFO in column.info:
            map_embedding(mapper, key, column)  # of a column that was added to the class later
    for attribute in mapper.column_attrs:
        embedding = bound(attribute.columns[0])
        if embedding is not None:
            mapped = [link for link in embedding.links if link in mapper.columns.values()]
            links = (mapper.get_property_by_column(link).key for link in mapped)
            yield MappedEmbedding(*mapped_attributes(mapper, embedding), attribute.key, tuple(links))


def mapped_attributes(mapper: Mapper[Any], found: _F) -> tuple[_F, str, tuple[str, ...]]:
    """The arguments of :class:`MappedSources`."""
    digest = mapper.get_property_by_column(found.digest).key
    return found, digest, tuple(mapper.get_property_by_column(source).key for source in found.sources)
