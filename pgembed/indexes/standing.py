"""The vector indexes that stand in a database: read from its catalogue, in the terms of declarations, and
whether they stand as declared.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Column, Connection, Index, bindparam, text
from sqlalchemy.types import ARRAY, String

from pgembed.columns.types import shape_of
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.errors import IndexBuildError, IndexMissingError
from pgembed.indexes.indexed import Quantize, indexed
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.indexes.tables import access_method_of, name_of, parameters_of, relation_of
from pgembed.metrics import BY_NAME

_STANDING = text("""
SELECT i.indexrelid AS oid,
       n.nspname AS schema,
       c.relname AS name,
       t.relname AS table,
       CAST(CAST(i.indrelid AS pg_catalog.regclass) AS text) AS relation,
       a.attname AS column,
       CASE WHEN a.attname IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) END AS expression,
       m.amname AS access_method,
       o.opcname AS opclass,
       CAST(c.reloptions AS text[]) AS options,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       i.indisvalid AND i.indisready AS valid,
       EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p
               WHERE p.datname = pg_catalog.current_database()
                 AND (p.index_relid = i.indexrelid OR p.relid IS NULL)) AS building,
       c.relkind = 'I' AS partitioned,
       ARRAY(SELECT CAST(leaf.relname AS text)
               FROM pg_catalog.pg_partition_tree(i.indexrelid) AS part
               JOIN pg_catalog.pg_class AS leaf ON leaf.oid = part.relid
              WHERE part.isleaf) AS leaves,
       (SELECT h.inhparent FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = i.indexrelid) AS parent,
       CASE WHEN c.relkind = 'I'
            THEN (SELECT CAST(coalesce(sum(pg_catalog.pg_relation_size(part.relid)), 0) AS bigint)
                    FROM pg_catalog.pg_partition_tree(i.indexrelid) AS part WHERE part.isleaf)
            ELSE pg_catalog.pg_relation_size(i.indexrelid) END AS size
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = ANY (CAST(:methods AS text[]))
  JOIN pg_catalog.pg_opclass AS o ON o.oid = i.indclass[0]
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
 WHERE (i.indrelid = pg_catalog.to_regclass(:relation) OR :relation IS NULL)
   AND n.nspname NOT LIKE 'pg\\_temp\\_%'
 ORDER BY n.nspname, t.relname, c.relname
""").bindparams(bindparam("relation", type_=String), bindparam("methods", type_=ARRAY(String)))


@dataclass(frozen=True)
class StandingIndex:
    """A vector index as the catalogue has it.

    :ivar relation: its table as SQL writes it.
    :ivar column: the column that it indexes, or ``None`` for an index on an ``expression``.
    :ivar parameters: the storage parameters that are stated.
    :ivar predicate: the condition of a partial index.
    :ivar valid: whether queries may use it.
    :ivar building: whether it is being built at this moment.
    :ivar partitioned: whether it is that of a partitioned table, which holds nothing itself: the indexes of
        the partitions are attached to it. Until all are, it is not valid.
    :ivar leaves: the names of those indexes, which are what plans show.
    :ivar parent: the oid of the index that it is attached to.
    :ivar size: bytes on the disk, those of the partitions included.
    """

    oid: int
    schema: str
    name: str
    table: str
    relation: str
    column: str | None
    expression: str | None
    access_method: str
    opclass: str
    parameters: dict[str, int]
    predicate: str | None
    valid: bool
    building: bool
    partitioned: bool
    leaves: list[str]
    parent: int | None
    size: int

    @property
    def storage(self) -> str:
        """The type that it indexes, as the name of its operator class says."""
        return self.opclass.partition("_")[0]

    @property
    def metric(self) -> str | None:
        """The metric that it serves; ``None`` for one that pgembed has no name for."""
        found = (metric.name for metric in BY_NAME.values() if metric.opclass(self.storage) == self.opclass)
        return next(found, None)

    @property
    def operator(self) -> str | None:
        """The distance operator that it serves."""
        return None if self.metric is None else BY_NAME[self.metric].operator

    def refuse_while_building(self) -> None:
        """
        :raises IndexBuildError: it is being built. It looks like one that a failed build left over, and to
            drop it would be to wait for the build, and then to drop its result.
        """
        if self.building:
            raise IndexBuildError(
                self.name,
                "another session is building it at this moment",
                fix="Wait for it; pg_stat_progress_create_index shows how far it is",
            )


def standing(connection: Connection, relation: str | None = None) -> list[StandingIndex]:
    """The vector indexes of a table (its name as SQL writes it), or of the whole database."""
    rows = connection.execute(_STANDING, {"relation": relation, "methods": list(ACCESS_METHODS)}).mappings()
    return [
        StandingIndex(
            parameters=_parameters(row["options"]),
            **{name: value for name, value in row.items() if name != "options"},
        )
        for row in rows
    ]


def find(connection: Connection, index: Index, name: str | None = None) -> StandingIndex | None:
    """The declared index as it stands in the database, valid or not; ``None`` where it does not.

    :param name: for one that stands beside it by another name.
    """
    name = name or name_of(index)
    return next((found for found in standing(connection, relation_of(index)) if found.name == name), None)


def present(connection: Connection, index: Index, *, by: str = "create") -> StandingIndex:
    """The declared index as it stands, valid or not.

    :param by: the function of :mod:`pgembed.indexes` that the error advises.
    :raises IndexMissingError: it is not there.
    """
    found = find(connection, index)
    if found is None:
        raise IndexMissingError(
            name_of(index),
            f"{relation_of(index)} has no such index",
            fix=f"Build it with `pgembed index create` or pgembed.indexes.{by}()",
        )
    return found


def require(connection: Connection, index: Index) -> StandingIndex:
    """The declared index as it stands, ready to be used.

    :raises IndexMissingError: it is not there, or invalid.
    """
    found = present(connection, index)
    if not found.valid:
        raise IndexMissingError(
            found.name,
            "the index is invalid, left over by a build that failed",
            fix="Build it again with `pgembed index create` or pgembed.indexes.create(): both drop it first",
        )
    return found


def _parameters(options: Sequence[str] | None) -> dict[str, int]:
    stated = (option.partition("=") for option in options or ())
    return {name: int(value) for name, _, value in stated if value.isdigit()}


_KINDS: dict[str, type[HNSW] | type[IVFFlat]] = {"hnsw": HNSW, "ivfflat": IVFFlat}


@dataclass(frozen=True)
class Form:
    """What an index holds of a column, and of which rows: the options of the declarations.

    :ivar where: the predicate, as SQL.
    """

    quantize: Quantize | None = None
    dimensions: int | None = None
    where: str | None = None


def is_form_of(expression: str, column: str) -> bool:
    """Whether an expression over the column is one that ``quantize=`` and ``dimensions=`` make."""
    words = set(re.findall(r"[^\W\d]\w*", expression))
    return column in words and words - {column} <= {
        "binary_quantize",
        "subvector",
        "vector",
        "halfvec",
        "bit",
    }


def form_of(index: StandingIndex, column: Column[Any]) -> Form | None:
    """The form of an index on the column or on an expression that ``quantize=`` and ``dimensions=`` make."""
    if index.column == column.name:
        return Form(where=index.predicate)
    if index.expression is None or not is_form_of(index.expression, column.name):
        return None
    part = re.search(r"subvector\(.*, 1, (\d+)\)", index.expression)
    halved = index.storage == "halfvec" and shape_of(column.type)[0] == "vector"
    return Form(
        "bit" if "binary_quantize(" in index.expression else "half" if halved else None,
        int(part[1]) if part else None,
        index.predicate,
    )


def declared_as(index: StandingIndex, column: Column[Any]) -> VectorIndex | None:
    """A declaration of the standing index; ``None`` where HNSW and IVFFlat declare no such one."""
    form = form_of(index, column)
    if form is None or index.access_method not in _KINDS:
        return None
    options: dict[str, Any] = {**index.parameters, **asdict(form)}
    metric = None if form.quantize == "bit" else index.metric
    return _KINDS[index.access_method](column, name=index.name, metric=metric, **options)


def standing_on(connection: Connection, relation: str, column: str) -> StandingIndex | None:
    """The index on a column or on an expression over it, the valid one if there are several.

    :param relation: the table, as SQL writes it.
    """
    mentions = re.compile(rf'(?<![\w"]){re.escape(column)}(?!\w)|"{re.escape(column)}"')
    there = [
        index
        for index in standing(connection, relation)
        if index.column == column or (index.expression is not None and mentions.search(index.expression))
    ]
    return next((index for index in there if index.valid), there[0] if there else None)


_NAMESAKE = text(
    "SELECT CAST(c.oid AS pg_catalog.regclass) FROM pg_catalog.pg_class AS c "
    "JOIN pg_catalog.pg_class AS t USING (relnamespace) "
    "WHERE t.oid = pg_catalog.to_regclass(:relation) AND c.relname = :name"
)


def stands_as_declared(connection: Connection, index: Index) -> bool:
    """Whether the index stands, valid and as it is declared.

    :raises IndexBuildError: one of that name stands and is of other settings, or something else has the name.
    """
    found = find(connection, index)
    if found is None:
        _refuse_namesake(connection, index)
        return False
    if not found.valid:
        return False
    refuse_other_form(found, index)
    if changed := _changed(found, index):
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changed.items())
        (column,) = index.columns
        place = f"{shlex.quote(found.relation)} {shlex.quote(column.name)}"
        raise IndexBuildError(
            found.name,
            f"it stands with other parameters ({described(found)}): nothing is built",
            fix=f"`pgembed index reindex {place} --index {shlex.quote(found.name)} {options}` changes "
            "them, as pgembed.indexes.reindex() does; one beside it needs a name of its own",
        )
    return True


def require_as_declared(connection: Connection, index: Index) -> None:
    """
    :raises IndexBuildError: the index does not stand, valid and as it is declared, after it was built.
    """
    if not stands_as_declared(connection, index):
        raise IndexBuildError(
            name_of(index),
            "it was built, but this session does not see it in the database: another session has dropped "
            "it, or built it after this transaction began",
            fix="Try again, in a new transaction",
        )


def refuse_other_form(found: StandingIndex, index: Index) -> None:
    """
    :raises IndexBuildError: the index stands with another access method, metric, expression or predicate.
    """
    if _has_form(found, index):
        return
    raise IndexBuildError(
        found.name,
        f"it stands otherwise than asked for ({described(found)}): nothing is built",
        fix="A migration replaces it, or drop it first; one beside it needs a name of its own",
    )


def has_settings(found: StandingIndex, index: Index) -> bool:
    """Whether the index stands in the form and with the parameters that are declared, valid or not."""
    return _has_form(found, index) and not _changed(found, index)


def described(index: StandingIndex) -> str:
    """What an index is, in a message: ``hnsw, cosine, m = 16, ef_construction = 64``."""
    parts = [index.access_method, index.metric or index.opclass]
    parts += [f"{name} = {value}" for name, value in _effective(index).items()]
    if index.expression is not None:
        parts.append(f"on {index.expression}")
    if index.predicate is not None:
        parts.append(f"where {index.predicate}")
    return ", ".join(parts)


def _has_form(found: StandingIndex, index: Index) -> bool:
    if found.access_method != access_method_of(index):
        return False
    what = indexed(index)
    if what is None:  # of an access method or an expression that is not known
        return True
    if isinstance(index, VectorIndex):
        form = form_of(found, what.column)
        # Predicates are not compared: Postgres writes them otherwise than people do.
        same = form is not None and replace(form, where=None) == Form(index.quantize, index.dimensions)
    elif what.whole:
        same = found.column == what.column.name
    else:
        same = found.expression is not None and found.storage == what.storage
    partial = what.where is not None
    metric = what.metric and what.metric.name
    return same and partial == (found.predicate is not None) and found.metric == metric


def _changed(found: StandingIndex, index: Index) -> dict[str, int]:
    """The parameters that are declared otherwise than they stand; of ``lists="auto"`` any number will do."""
    open_ones = index.parameters.keys() - index.numbers.keys() if isinstance(index, VectorIndex) else ()
    return {
        name: value
        for name, value in parameters_of(index).items()
        if name not in open_ones and _effective(found).get(name) != value
    }


def _effective(found: StandingIndex) -> dict[str, int]:
    return ACCESS_METHODS[found.access_method].defaults | found.parameters


def _refuse_namesake(connection: Connection, index: Index) -> None:
    """``CREATE INDEX IF NOT EXISTS`` would do nothing if a relation of another kind had the name."""
    name = name_of(index)
    if connection.scalar(_NAMESAKE, {"relation": relation_of(index), "name": name}) is not None:
        raise IndexBuildError(
            name,
            "another relation of the schema has this name: nothing is built",
            fix="Give the index another name, with --index, or with name= in the model",
        )
