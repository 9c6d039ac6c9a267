"""What the database knows of a declared index, looked up within a search."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import (
    Integer,
    and_,
    cast,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    table,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause, ScalarSelect
from sqlalchemy.sql.visitors import InternalTraversal

from pgembed.indexes.indexed import Indexed


def is_ready(indexed: Indexed) -> ColumnElement[bool]:
    """SQL: a valid index holds what the declared one does, of all rows whatever its name; a partial index
    goes by its name."""
    index, attribute, opclass = _index(), _attribute(), table("pg_opclass", column("oid"), column("opcname"))
    indkey, indclass = (type_coerce(found, ARRAY(OID)) for found in (index.c.indkey, index.c.indclass))
    assert indexed.metric is not None
    conditions = [
        index.c.indrelid == _Relation(indexed.column.table),
        index.c.indisvalid,
        opclass.c.oid == indclass[0],
        opclass.c.opcname == indexed.metric.opclass(indexed.storage),
        attribute.c.attname == indexed.column.name,
        attribute.c.attrelid == index.c.indrelid,
    ]
    if indexed.whole:
        conditions.append(attribute.c.attnum == indkey[0])
    else:
        # The index has an attribute for its expression, of the expression's type; it depends on the column.
        of_index, depend = _attribute().alias(), table("pg_depend", *map(column, _DEPEND))
        conditions += [
            indkey[0] == 0,
            of_index.c.attrelid == index.c.indexrelid,
            of_index.c.attnum == 1,
            of_index.c.atttypmod == indexed.dimensions,
            exists().where(
                depend.c.objid == index.c.indexrelid,
                depend.c.refobjid == index.c.indrelid,
                depend.c.refobjsubid == attribute.c.attnum,
            ),
        ]
    if indexed.where is None:
        conditions.append(index.c.indpred.is_(None))
    else:
        named = table("pg_class", column("oid"), column("relname"))
        conditions += [named.c.oid == index.c.indexrelid, named.c.relname == str(indexed.index.name)]
    return exists().where(and_(*conditions))


def holds(searched: FromClause, expression: str) -> ColumnElement[bool]:
    """SQL: a valid index holds an expression of all rows, which is compared without casts and brackets."""
    index = _index()
    held = func.pg_get_expr(index.c.indexprs, index.c.indrelid)
    return exists().where(
        index.c.indrelid == _Relation(searched),
        index.c.indisvalid,
        index.c.indpred.is_(None),
        func.lower(func.regexp_replace(held, _NO_PART, "", "g")) == re.sub(_NO_PART, "", expression).lower(),
    )


def parameter(indexed: Indexed, name: str, default: int) -> ScalarSelect[Any]:
    """SQL: a storage parameter of the index as it was built."""
    index, named = _index(), table("pg_class", *map(column, ("oid", "relam", "reloptions")))
    method = table("pg_am", column("oid"), column("amname"))
    option = (
        func.pg_options_to_table(named.c.reloptions).table_valued("option_name", "option_value").lateral()
    )
    value = func.max(cast(option.c.option_value, Integer))
    return (
        select(func.coalesce(value, default))
        .select_from(index.join(named, named.c.oid == index.c.indexrelid))
        .join(method, method.c.oid == named.c.relam)
        .join(option, true())
        .where(
            index.c.indrelid == _Relation(indexed.column.table),
            method.c.amname == indexed.index.dialect_options["postgresql"]["using"],
            option.c.option_name == name,
        )
        .scalar_subquery()
    )


def returned(searched: FromClause) -> ScalarSelect[Any]:
    """SQL: how many rows the vector indexes of a table have returned in this transaction so far.

    ``NULL`` where that is not known: statistics are off, the table has partitions or is one, or has an index
    of a method that may not count its scans.
    """
    index, named = _index(), table("pg_class", column("oid"), column("relam"))
    method, family = table("pg_am", column("oid"), column("amname")), table("pg_inherits", *map(column, _KIN))
    number = func.pg_stat_get_xact_tuples_returned(index.c.indexrelid)
    counting = method.c.amname.in_(_COUNTING)
    counted = func.sum(number).filter(counting)
    relation = _Relation(searched)
    kin = exists().where(relation.in_([family.c.inhrelid, family.c.inhparent]))
    return (
        select(func.coalesce(counted, 0))
        .select_from(index.join(named, named.c.oid == index.c.indexrelid))
        .join(method, method.c.oid == named.c.relam)
        .where(index.c.indrelid == relation, ~kin)
        .having(
            func.current_setting("track_counts") == "on",
            func.bool_and(or_(method.c.oid < _NOT_BUILT_IN, counting)),
        )
        .scalar_subquery()
    )


def size(searched: FromClause) -> ScalarSelect[Any]:
    """SQL: the number of rows of a table when it was last analysed; ``NULL`` before."""
    named = table("pg_class", column("oid"), column("reltuples"))
    rows = func.nullif(named.c.reltuples, literal_column("-1"))
    return select(rows).where(named.c.oid == _Relation(searched)).scalar_subquery()


#: The methods of vector indexes that count what they return; Postgres's own, which do, are below this number.
_COUNTING = ("hnsw", "ivfflat")
_NOT_BUILT_IN: ColumnElement[int] = literal_column("16384")
_KIN = ("inhrelid", "inhparent")
#: What Postgres and SQLAlchemy write differently.
_NO_PART = "::(text|regconfig|character varying)|[() ]"
_DEPEND = ("objid", "refobjid", "refobjsubid")


def _index() -> Any:
    return table(
        "pg_index",
        *map(column, ("indexrelid", "indrelid", "indkey", "indclass", "indisvalid", "indpred", "indexprs")),
    )


def _attribute() -> Any:
    return table("pg_attribute", *map(column, ("attrelid", "attnum", "attname", "atttypmod")))


class _Relation(ColumnElement[int]):
    """The oid of a table, by its name in the statement: ``CAST($name$article$name$ AS REGCLASS)``."""

    inherit_cache = True
    _traverse_internals = [("named", InternalTraversal.dp_plain_obj)]  # noqa: RUF012

    def __init__(self, named: FromClause) -> None:
        self.named = (named,)  # in a tuple, because SQLAlchemy asks whether a part of a cache key is true
        self.type = OID()


@compiles(_Relation)
def _regclass(element: _Relation, compiler: Any, **_: Any) -> str:
    # The preparer knows schema_translate_map, whose names SQLAlchemy puts into the SQL at execution: between
    # dollars they need no quotes doubled.
    return f"CAST($name${compiler.preparer.format_table(element.named[0])}$name$ AS REGCLASS)"
