"""Whether an index stands as it is declared."""

from __future__ import annotations

import shlex
from dataclasses import replace

from sqlalchemy import Connection, Index, text

from pgembed.indexes.catalogue import StandingIndex, find, name_of, relation_of
from pgembed.indexes.declaration import VectorIndex
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.forms import Form, form_of
from pgembed.indexes.indexed import indexed
from pgembed.indexes.methods import ACCESS_METHODS
from pgembed.indexes.planning import parameters_of
from pgembed.indexes.tables import access_method_of

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
            "it was built, and does not stand as this session sees the database: another session has dropped "
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
    parts += [f"{name} = {value}" for name, value in _parameters(index).items()]
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
        if name not in open_ones and _parameters(found).get(name) != value
    }


def _parameters(found: StandingIndex) -> dict[str, int]:
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
