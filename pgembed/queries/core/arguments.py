"""What the arguments of the helpers may be: numbers, choices, texts, conditions.

Each function returns the value as the database gets it (a ``numpy.int64`` as an ``int``), and raises a
:class:`~pgembed.exc.QueryError` that names the argument, what was found and what is expected.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, BindParameter, Boolean, Cast, SelectBase
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import QueryableAttribute, RelationshipProperty
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.elements import ColumnClause, ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ScalarSelect
from sqlalchemy.types import NULLTYPE, NullType

from pgembed.columns.conditions import condition
from pgembed.columns.words import CONFIGURATION
from pgembed.constants import CANDIDATES_FLOOR, CANDIDATES_PER_ROW
from pgembed.encoders.text.texts import checked
from pgembed.exc import QueryError

#: Expressions whose type is told, not guessed from an operator's left side.
_VALUES = (ColumnClause, FunctionElement, BindParameter, ScalarSelect, Cast)
_POSTGRESQL: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
#: The most rows that are asked for, Postgres's largest ``integer``.
MOST = 2**31 - 1


def whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """A whole number within bounds.

    :raises QueryError: it is none (``True`` is none either), or outside of them.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        open_end = most == MOST and (number or 0) <= most
        bounds = f"of at least {least}" if open_end else f"from {least} to {most}"
        raise QueryError(f"{name}={value!r}; expected a whole number {bounds}")
    return number


def real(name: str, value: Any, expected: str = "a number", *, finite: bool = False) -> float:
    """A number that is not NaN.

    :param expected: what is expected, for the message.
    :raises QueryError: it is none, or infinite where it has to be ``finite``.
    """
    is_number = isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # a whole number beyond all floats
        number = math.nan
    if math.isnan(number) or (finite and math.isinf(number)):
        raise QueryError(f"{name}={value!r}; expected {expected}")
    return number


def candidates_for(rows: int, given: Any) -> int:
    """``candidates=``, or what is usual for this number of rows.

    :raises QueryError: it is not a whole number, or fewer than the rows.
    """
    if given is None:
        return min(max(CANDIDATES_PER_ROW * rows, CANDIDATES_FLOOR), MOST)
    candidates = whole("candidates", given, 1)
    if candidates < rows:
        raise QueryError(f"candidates={candidates}; expected at least limit + offset = {rows}")
    return candidates


def choice(name: str, value: Any, options: Sequence[str]) -> None:
    """
    :raises QueryError: the value is none of ``options``.
    """
    if not isinstance(value, str) or value not in options:
        *rest, last = (f'"{option}"' for option in options)
        raise QueryError(f"{name}={value!r}; expected {', '.join(rest)} or {last}")


def words(name: str, value: Any) -> str:
    """A text for Postgres.

    :raises QueryError: it is not a string, or holds NUL characters.
    :raises TextError: it holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise QueryError(f"{name}={value!r}; expected a str")
    checked([value])
    if "\0" in value:
        raise QueryError(
            f"{name} holds a NUL character (at {value.index(chr(0))}), which no text in Postgres can have: "
            'remove it with .replace("\\0", "")'
        )
    return value


def configuration(name: str, value: Any) -> str:
    """The name of a text search configuration, with or without a schema, as Postgres reads it.

    :raises QueryError: it is none. (Whether there is one of that name, the database says.)
    """
    if not CONFIGURATION.fullmatch(words(name, value)):
        raise QueryError(
            f"{name}={value!r}; expected the name of a text search configuration, such as 'english' or "
            "'public.mine'"
        )
    return value  # type: ignore[no-any-return]


def conditions(where: Any) -> list[ColumnElement[bool]]:
    """``where=`` as a list of conditions.

    :raises QueryError: one of them is not a condition.
    """
    if where is None:
        return []
    return [_condition(each) for each in (where if isinstance(where, list | tuple) else [where])]


def _condition(given: Any) -> ColumnElement[bool]:
    found: Any = None
    if given is not None and not isinstance(given, SelectBase):
        with contextlib.suppress(ArgumentError, NotImplementedError):
            found = coercions.expect(roles.WhereHavingRole, given)
    if isinstance(found, _VALUES) and found.type._type_affinity not in (Boolean, NullType):
        found = None  # a value by itself, which is not a condition
    if found is None:
        raise QueryError(
            f"where={given!r}; expected a condition such as Article.section == 'help', or a list of them "
            "(SQL text goes into sqlalchemy.text())"
        )
    return condition(found if isinstance(given, bool) else given)  # type: ignore[no-any-return]


def comparable(name: str, given: Any, example: str) -> Any:
    """An expression whose values Postgres can compare.

    :param example: as for :func:`expression`.
    :raises QueryError: it is none.
    """
    found = expression(name, given, example)
    kind = getattr(found, "type", NULLTYPE).dialect_impl(_POSTGRESQL)
    if isinstance(kind, JSON) and not isinstance(kind, postgresql.JSONB):
        raise QueryError(
            f"{name}={given} is of the type json, whose values have no equality: cast it to JSONB, or take a "
            'text out of it with ["key"].as_string()'
        )
    return found


def expression(name: str, given: Any, example: str) -> Any:
    """An attribute or another SQL expression with one value a row.

    :param example: of an attribute, for the message.
    :raises QueryError: it is none.
    """
    if isinstance(given, QueryableAttribute) and isinstance(
        getattr(given, "property", None), RelationshipProperty
    ):
        raise QueryError(
            f"{name}={given} is a relationship, which has no value of its own; expected a column such as "
            f"{example}, or one of the related table: select(Author.name).where(Author.id == "
            "Article.author_id).scalar_subquery()"
        )
    if not hasattr(given, "is_not"):
        raise QueryError(
            f"{name}={given!r} is not a column or another expression; expected one such as {example}"
        )
    return given
