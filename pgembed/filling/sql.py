"""The tables of ``sql/30_filling.sql`` as SQLAlchemy knows them, and what statements over them share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    cast,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID, UUID

_metadata = MetaData(schema="pgembed")
_when = DateTime(timezone=True)

lease = Table(
    "lease",
    _metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("worker", Text, nullable=False),
    Column("relation", OID, nullable=False),
    Column("column_name", Text, nullable=False),
    Column("keys", ARRAY(Text), nullable=False),
    Column("expires_at", _when, nullable=False),
)

failure = Table(
    "failure",
    _metadata,
    Column("relation", OID, primary_key=True),
    Column("column_name", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", UUID(as_uuid=False)),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("first_failed_at", _when, nullable=False),
    Column("last_failed_at", _when, nullable=False),
    Column("next_attempt_at", _when, nullable=False),
)


def same(left: ColumnElement[Any], right: Any) -> ColumnElement[bool]:
    """``left = right`` by Postgres's own operator, even if one on the ``search_path`` fits the types
    better."""
    return compared(left, "=", right)


def compared(left: ColumnElement[Any], sign: str, right: Any) -> ColumnElement[bool]:
    return left.bool_op(f"OPERATOR(pg_catalog.{sign})")(right)


def equal(left: ColumnElement[Any], right: ColumnElement[Any], builtin: bool) -> ColumnElement[bool]:
    return same(left, right) if builtin else left == right


def lines(values: Iterable[str | None]) -> str:
    """Many values as one parameter; ``None`` is an empty line."""
    return "\n".join(value or "" for value in values)


def text_array(text: Any) -> ColumnElement[Any]:
    """:func:`lines` as ``text[]``, NULL where a line is empty."""
    return func.pg_catalog.string_to_array(cast(text, Text), func.pg_catalog.chr(10), "", type_=ARRAY(Text))


def bound_lines(parameter: str) -> ColumnElement[Any]:
    return text_array(bindparam(parameter, type_=Text()))


def bigint(parameter: str) -> ColumnElement[int]:
    return bindparam(parameter, type_=BigInteger)


def digests() -> ColumnElement[Any]:
    return cast(bound_lines("digests"), ARRAY(UUID))
