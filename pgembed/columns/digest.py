"""The digest of a row's sources: what a vector was made from, in 16 bytes, the same in Python and in SQL.

With the parts *p1 ... pn* (the source columns, NULL counting as the empty text)::

    CASE WHEN octet_length(p1) + ... + octet_length(pn) > 0
         THEN md5('<recipe>' || md5(p1) || ... || md5(pn))::uuid END

where *recipe* is the MD5 of the encoder's fingerprint and the template. Every part has a fixed length, so
texts that differ give inputs that differ, whatever separators they hold. Only built-in functions take part
(an index on the digest can be dumped and restored anywhere), all are immutable, and none reads a collation.
MD5 is only a checksum here: anyone who could use a collision can write the row anyway.
"""

from __future__ import annotations

import hashlib
import json
import operator
import uuid
from collections.abc import Sequence
from functools import reduce
from typing import Any

from sqlalchemy import and_, case, cast, func, literal_column, or_
from sqlalchemy.dialects.postgresql import UUID
from sqlalchemy.sql.elements import ColumnElement

from pgembed.exc import TextError

#: Stands for the digest where what is stored has none: differs from NULL and from every digest.
NO_DIGEST = uuid.UUID(int=0)
_NO_DIGEST = literal_column(f"'{NO_DIGEST}'::uuid", UUID())


def recipe(fingerprint: str, template: str | None) -> str:
    """What turns the sources into the vector, as 32 hexadecimal digits."""
    return _md5(json.dumps(["pgembed-1", fingerprint, template]))


def digest(recipe: str, texts: Sequence[str | None]) -> uuid.UUID | None:
    """The digest of the sources' texts; ``None`` where all of them are NULL or empty.

    :raises TextError: a text is not valid Unicode (it holds a lone surrogate).
    """
    if not any(texts):
        return None
    return uuid.UUID(_md5(recipe + "".join(_md5(text or "") for text in texts)))


def digest_sql(recipe: str, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[uuid.UUID | None]:
    """:func:`digest` of the columns as an SQL expression.

    The constants are literals, never parameters: the planner proves by comparing expressions that a query
    may use the pending index, and a parameter would defeat it. Functions are named with their schema: those
    of Postgres take ``text``, and a user's ``md5(varchar)`` on the ``search_path`` would be preferred.
    """
    empty: ColumnElement[str] = literal_column("''")
    zero: ColumnElement[int] = literal_column("0")
    lengths: list[ColumnElement[int]] = [
        func.coalesce(func.pg_catalog.octet_length(column), zero) for column in columns
    ]
    length = reduce(operator.add, lengths)
    parts: ColumnElement[Any] = literal_column(f"'{recipe}'")
    for column in columns:
        parts = parts.op("||")(func.pg_catalog.md5(func.coalesce(column, empty)))
    return case((length > zero, cast(func.pg_catalog.md5(parts), UUID(as_uuid=True))))


def held_sql(
    vector: ColumnElement[Any], digest: ColumnElement[Any], links: Sequence[ColumnElement[Any]] = ()
) -> ColumnElement[uuid.UUID | None]:
    """The digest of the text that a vector was made of.

    A row that is linked to another with ``on_duplicate="return"`` counts as one with a vector::

        CASE WHEN embedding IS NOT NULL OR duplicate_of_id IS NOT NULL THEN ...

    A vector taken away without its digest, and one put there without, both differ from what is wanted::

        CASE WHEN embedding IS NOT NULL THEN coalesce(embedding_digest, <zero>) END IS DISTINCT FROM <wanted>
    """
    there: ColumnElement[bool] = vector.is_not(None)
    if links:
        there = or_(there, and_(*(link.is_not(None) for link in links)))
    return case((there, func.coalesce(digest, _NO_DIGEST)))


def _md5(text: str) -> str:
    try:
        return hashlib.md5(str.encode(text), usedforsecurity=False).hexdigest()
    except UnicodeEncodeError as error:
        raise TextError(
            f"not valid Unicode: {error.reason} at character {error.start}, which Postgres cannot store; "
            "repair the text, for example with text.encode('utf-8', 'replace').decode()"
        ) from None
