"""The two tables of ``sql/30_filling.sql``, as SQLAlchemy knows them."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text
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
