"""Whether an index is as declared: what it holds of its column, and with which parameters."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Column, Connection, Index

from pgembed.columns.types import shape_of
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.errors import IndexBuildError
from pgembed.indexes.indexed import Quantize, indexed
from pgembed.indexes.methods import ACCESS_METHODS, AUTO
from pgembed.indexes.standing import StandingIndex, find, is_name_taken
from pgembed.indexes.tables import access_method_of, name_of, stated_parameters

_KINDS: dict[str, type[HNSW] | type[IVFFlat]] = {"hnsw": HNSW, "ivfflat": IVFFlat}


@dataclass(frozen=True)
class IndexForm:
    """What an index holds of a column, and of which rows: the options of the declarations.

    :ivar where: the predicate, as SQL.
    """

    quantize: Quantize | None = None
    dimensions: int | None = None
    where: str | None = None


@dataclass(frozen=True)
class Differences:
    """How an index differs from its declaration; false where it does not.

    :ivar form: of ``access method``, ``expression``, ``predicate`` and ``metric`` those that differ: another
        index has to be built.
    :ivar parameters: the declared value of each storage parameter that differs: reindexing changes them.
    """

    form: tuple[str, ...] = ()
    parameters: Mapping[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.form or self.parameters)


def differences(found: StandingIndex, index: Index) -> Differences:
    """How the existing index differs from the declared one, whatever their names, valid or not.

    Of predicates it is compared whether there is one: Postgres writes them otherwise than people do. Of an
    access method or an expression that is not known, nothing else is.
    """
    method, what = access_method_of(index), indexed(index)
    form: tuple[str, ...] = ("access method",) if method != found.access_method else ()
    if what is not None:
        metric = what.metric.name if what.metric is not None else found.opclass
        held = form_of(found, what.column)
        where = None if what.where is None else str(what.where)
        wanted = IndexForm(getattr(index, "quantize", None), getattr(index, "dimensions", None), where)
        if not what.whole and not isinstance(index, VectorIndex):  # any expression of this type
            held = IndexForm() if found.expression is not None and found.storage == what.storage else None
        form = _differing(found, held, method, metric, wanted)
    if form:
        return Differences(form)
    return Differences((), changed_parameters(method, found.parameters, stated_parameters(index)))


def changed_parameters(method: str, stated: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The declared storage parameters that are not those of an index, the defaults of the access method
    included; for ``"auto"`` any number will do."""
    defaults = ACCESS_METHODS[method].defaults if method in ACCESS_METHODS else {}
    before, after = {**defaults, **stated}, {**defaults, **declared}
    return {
        name: after.get(name)
        for name in {**after, **before}
        if after.get(name) != AUTO and str(before.get(name)) != str(after.get(name))
    }


def matching(
    there: Iterable[StandingIndex],
    column: Column[Any],
    *,
    name: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    form: IndexForm | None = None,
) -> list[tuple[StandingIndex, IndexForm]]:
    """The matching indexes on a column, those on whole vectors of all rows first, then those
    that are valid. What is ``None`` may be anything."""
    found = [
        (index, held)
        for index in there
        if name in (None, index.name) and (held := form_of(index, column)) is not None
        if not _differing(index, held, method, metric, form)
    ]
    return sorted(found, key=lambda pair: (pair[1] != IndexForm(), not pair[0].valid))


def _differing(
    found: StandingIndex,
    held: IndexForm | None,
    method: str | None,
    metric: str | None,
    form: IndexForm | None,
) -> tuple[str, ...]:
    if held is not None and held.quantize == "bit" and metric is not None:
        metric = "hamming"  # bits of vectors give the candidates of any metric
    differ = {
        "access method": method not in (None, found.access_method),
        "expression": held is None
        or (form is not None and (held.quantize, held.dimensions) != (form.quantize, form.dimensions)),
        "predicate": form is not None and (form.where is None) != (found.predicate is None),
        "metric": metric not in (None, found.metric or found.opclass),
    }
    return tuple(name for name, differs in differ.items() if differs)


def is_form_of(expression: str, column: str) -> bool:
    """Whether an expression over the column is one that ``quantize=`` and ``dimensions=`` make."""
    found = re.findall(r'"(?:[^"]|"")+"|[^\W\d]\w*', expression)
    words = {name[1:-1].replace('""', '"') if name.startswith('"') else name for name in found}
    return column in words and words - {column} <= {
        "binary_quantize",
        "subvector",
        "vector",
        "halfvec",
        "bit",
    }


def form_of(index: StandingIndex, column: Column[Any]) -> IndexForm | None:
    """The form of an index on the column or on an expression that ``quantize=`` and ``dimensions=`` make."""
    if index.column == column.name:
        return IndexForm(where=index.predicate)
    if index.expression is None or not is_form_of(index.expression, column.name):
        return None
    part = re.search(r"subvector\(.*, 1, (\d+)\)", index.expression)
    halved = index.storage == "halfvec" and shape_of(column.type)[0] == "vector"
    quantize: Quantize | None = (
        "bit" if "binary_quantize(" in index.expression else "half" if halved else None
    )
    if part is None and (quantize is None or "subvector(" in index.expression):
        return None  # a cast alone, or dimensions that are not the first
    return IndexForm(quantize, int(part[1]) if part else None, index.predicate)


def declaration(
    column: Column[Any],
    method: str,
    form: IndexForm,
    *,
    name: str | None,
    metric: str | None,
    parameters: Mapping[str, Any],
) -> VectorIndex | None:
    """An index of this form, declared on the column; ``None`` where neither HNSW nor IVFFlat is one.

    :raises DeclarationError: pgvector has no such index.
    """
    if method not in _KINDS:
        return None
    ACCESS_METHODS[method].check_parameters(parameters)
    return _KINDS[method](column, name=name, metric=metric, **{**parameters, **asdict(form)})


def declared_as(index: StandingIndex, column: Column[Any]) -> VectorIndex | None:
    """A declaration of the standing index; ``None`` where HNSW and IVFFlat declare no such one."""
    form = form_of(index, column)
    if form is None:
        return None
    metric = None if form.quantize == "bit" else index.metric
    return declaration(
        column, index.access_method, form, name=index.name, metric=metric, parameters=index.parameters
    )


def stands_as_declared(connection: Connection, index: Index) -> bool:
    """Whether the index exists, valid and as declared.

    :raises IndexBuildError: one of that name has other settings, or something else has the name.
    """
    found = find(connection, index)
    if found is None:
        # CREATE INDEX IF NOT EXISTS would do nothing if a relation of another kind had the name.
        if not is_name_taken(connection, index):
            return False
        found = find(connection, index)  # another session may have built it between the two looks
        if found is None:
            raise IndexBuildError(
                name_of(index),
                "another relation of the schema has this name: nothing is built",
                fix="Give the index another name, with --index, or with name= in the model",
            )
    if not found.valid:
        return False
    refuse_other_form(found, index)
    if changed := differences(found, index).parameters:
        stated = {name: value for name, value in changed.items() if value is not None}
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in stated.items())
        (column,) = index.columns
        place = f"{shlex.quote(found.relation)} {shlex.quote(column.name)}"
        raise IndexBuildError(
            found.name,
            f"it exists with other parameters ({described(found)}): nothing is built",
            fix=f"`pgembed index reindex {place} --index {shlex.quote(found.name)} {options}` changes "
            "them, as pgembed.indexes.reindex() does; one beside it needs a name of its own",
        )
    return True


def require_as_declared(connection: Connection, index: Index) -> None:
    """
    :raises IndexBuildError: after the build, the index is missing, invalid or not as declared.
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
    :raises IndexBuildError: the index has another access method, metric, expression or predicate.
    """
    if differences(found, index).form:
        raise IndexBuildError(
            found.name,
            f"it exists in another form ({described(found)}): nothing is built",
            fix="A migration replaces it, or drop it first; one beside it needs a name of its own",
        )


def described(index: StandingIndex) -> str:
    """What an index is, in a message: ``hnsw, cosine, m = 16, ef_construction = 64``."""
    parts = [index.access_method, index.metric or index.opclass]
    parts += [f"{name} = {value}" for name, value in index.all_parameters.items()]
    if index.expression is not None:
        parts.append(f"on {index.expression}")
    if index.predicate is not None:
        parts.append(f"where {index.predicate}")
    return ", ".join(parts)
