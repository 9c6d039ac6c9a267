"""Statements that are built once: what a helper has built before comes again with other values.

Building a search, and the key by which SQLAlchemy caches its SQL, takes longer than many a search. So each
entity keeps templates: the statements that helpers have built, by the column, the options, and the structure
of the expressions given. The next call of the same shape returns an :class:`Unbuilt`, a statement that has
the template's cache key with its own values. Where the SQL has been compiled, executing it needs no more.
Whatever else looks at it, to print it, pickle it or make a subquery of it, finds the statement that the call
would have built without a template.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, Self, TypeVar, cast

import numpy as np
from sqlalchemy import BindParameter, Column, Select, Table
from sqlalchemy.orm import Mapper, QueryableAttribute
from sqlalchemy.sql.cache_key import CacheKey, HasCacheKey
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import LRUCache

from pgembed.columns.embedding import INFO
from pgembed.queries.core.statement import OwnLabel, SearchSelect
from pgembed.queries.core.subject import VectorColumn, resolve
from pgembed.queries.core.vectors import Query, query_type

_S = TypeVar("_S", bound=SearchSelect[*tuple[Any, ...]])

#: Where an entity keeps its templates: they go when it goes.
_PLACE = "_pgembed_templates"
#: What options may be: of other types, equal values might be different arguments.
_OPTIONS = {NoneType, bool, int, float, str}
_building = threading.RLock()


def templated(
    build: Callable[[Any], _S],
    column: VectorColumn,
    query: Query,
    options: tuple[Any, ...],
    *,
    metric: str | None = None,
    base: Any = None,
    expressions: Sequence[Any] = (),
    kind: TypeEngine[Any] | None = None,
) -> _S:
    """What ``build(query)`` returns, or a statement that turns into it when it is looked at.

    :param build: the helper's work; what it refuses becomes no template.
    :param options: what decides the SQL by its value.
    :param base: a select, whose parameters are replaced by those of the next call.
    :param kind: the type of the query parameter, where it is not that of a vector.
    :param expressions: other expressions whose parameters are replaced; ``None`` stands for no expression.
    """
    templates = _Templates.of(column)
    structure = _structure(column, base, expressions)
    options = (build.__qualname__, getattr(column, "key", None), metric, *options)
    if (
        templates is None
        or structure is None
        or not isinstance(query, str | np.ndarray | list)
        or not all(type(option) in _OPTIONS for option in options)
    ):
        return build(query)
    key, parameters = structure
    shape = (options, tuple(map(type, options)), key)
    found = templates.get(templates.key(shape, parameters))
    if found is not None and found.is_valid():
        value = found.kind.accepted(query)
        return cast("_S", Unbuilt.of(_Call(found, lambda: build(value), value, parameters, base)))

    built = build(query)
    subject = resolve(column, metric)
    kind = query_type(subject) if kind is None else kind
    if hasattr(kind, "accepted"):
        templates.by_value |= any(index.where is not None for index in subject.indexes)
        key = templates.key(shape, parameters)
        template = _Template.of(built, kind, subject.column, parameters)
        if key is not None and template is not None:
            templates[key] = template
    return built


class _Templates(LRUCache[Any, Any]):
    """The templates of one entity: a mapper, an alias of one, or a Core table.

    :ivar by_value: whether the values of parameters decide which index can be used, as for partial indexes.
    """

    __slots__ = ("by_value", "owner")

    def __init__(self, owner: Any = None) -> None:
        super().__init__(capacity=100)
        self.owner = owner
        self.by_value = False

    def __reduce__(self) -> Any:  # with the table that is pickled
        return _Templates, ()

    @classmethod
    def of(cls, column: Any) -> Self | None:
        owner: Any = None
        if isinstance(column, QueryableAttribute):
            parent = column.parent
            owner = parent if isinstance(parent, Mapper) else getattr(parent, "entity", None)
        elif isinstance(column, Column):
            owner = column.table
        if owner is None or not hasattr(owner, "__dict__"):
            return None
        found: Self | None = vars(owner).get(_PLACE)
        if found is None or found.owner is not owner:  # a copy of an alias copies this too
            found = vars(owner)[_PLACE] = cls(owner)
        return found

    def key(self, shape: Any, parameters: Sequence[BindParameter[Any]]) -> Any:
        """The key of a template; ``None`` where a value decides that cannot be hashed."""
        values = [each.effective_value for each in parameters] if self.by_value else []
        key = (shape, tuple(map(type, values)), tuple(values))
        try:
            hash(key)
        except TypeError:
            return None
        return key


class _Expressions(HasCacheKey):
    _cache_key_traversal = (("parts", InternalTraversal.dp_has_cache_key_list),)  # type: ignore[assignment]

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts


def _structure(
    column: Any, base: Any, expressions: Sequence[Any]
) -> tuple[Any, Sequence[BindParameter[Any]]] | None:
    """The structure of expressions as a key, and the parameters in them; ``None`` where they have no key.

    The column stands among them, so that its alias and another alias are told apart.
    """
    given = [base, *expressions]
    if not any(each is not None for each in given):
        return len(given), []
    parts = [
        each.__clause_element__() if hasattr(each, "__clause_element__") else each
        for each in (column, *given)
        if each is not None
    ]
    if not all(isinstance(part, ClauseElement) for part in parts) or (
        isinstance(base, Select) and (base._with_options or base._execution_options)
    ):
        return None
    found = _Expressions(parts)._generate_cache_key()
    if found is None or getattr(found, "params", None):
        return None
    return (tuple(each is None for each in given), found.key), found.bindparams


@dataclass(frozen=True)
class _Template:
    """A statement, and where its cache key has the parameters that are replaced.

    :ivar places: positions among the parameters of the cache key, with the position among the parameters of
        the expressions; ``None`` stands for the query.
    """

    statement: SearchSelect[*tuple[Any, ...]]
    key: CacheKey
    places: Mapping[int, int | None]
    kind: Any
    column: Column[Any]
    facts: Any

    @classmethod
    def of(
        cls,
        built: SearchSelect[*tuple[Any, ...]],
        kind: TypeEngine[Any],
        column: Column[Any],
        parameters: Sequence[BindParameter[Any]],
    ) -> Self | None:
        """``None`` where a parameter is not found again in the statement, or copies of it are."""
        key = built._generate_cache_key()
        if key is None:
            return None
        given = {id(parameter): number for number, parameter in enumerate(parameters)}
        places: dict[int, int | None] = {}
        for position, found in enumerate(key.bindparams):
            if id(found) in given:
                places[position] = given[id(found)]
            elif isinstance(found.type, type(kind)):
                places[position] = None
            elif any(id(original) in given for original in found._cloned_set):
                return None
        if len(places) != len(given) + 1:
            return None
        return cls(built, key._replace(key=_Hashed(key.key)), places, kind, column, _facts(column))

    def is_valid(self) -> bool:
        """Whether a statement that is built now would be the same."""
        return bool(self.facts == _facts(self.column))

    def filled(self, query: Any, parameters: Sequence[BindParameter[Any]]) -> CacheKey:
        """The cache key with other parameters."""
        found: list[Any] = list(self.key.bindparams)
        for position, number in self.places.items():
            if number is None:
                found[position] = found[position]._with_value(query, maintain_key=True)
            else:
                found[position] = parameters[number]
        return self.key._replace(bindparams=found)


class _Hashed(tuple[Any, ...]):
    """A key of many parts whose hash is computed once."""

    _hash: int

    def __new__(cls, parts: tuple[Any, ...]) -> Self:
        made = super().__new__(cls, parts)
        made._hash = hash(parts)
        return made

    def __hash__(self) -> int:
        return self._hash


def _facts(column: Column[Any]) -> Any:
    """What a statement depends on beside the arguments of its helper."""
    declaration = column.info.get(INFO)
    indexes = frozenset(column.table.indexes) if isinstance(column.table, Table) else None
    return declaration, declaration and declaration.encoder, indexes


class Unbuilt(SearchSelect[*tuple[Any, ...]]):
    """A statement that is built when anything but its execution looks into it.

    Building turns it into what its helper would have returned, of that class. The columns by which rows have
    been read stay the same objects.
    """

    inherit_cache = True

    @classmethod
    def of(cls, call: _Call) -> Unbuilt:
        made = cls.__new__(cls)
        _held(made)["_call"] = call
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_EXECUTION:
            return object.__getattribute__(self, name)
        call = _held(self).get("_call")
        if call is not None:
            if name == "__class__":
                return type(call.template.statement)
            if name in _OF_TEMPLATE:
                return getattr(call.template.statement, name)
            if name == "_raw_columns":
                return call.columns(call.template.statement._raw_columns)
            if name == "_all_selected_columns" and call.base is None:
                return call.columns(call.template.statement._all_selected_columns)
            _build(self)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _build(self)
        setattr(self, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _build(self)
        return self.__reduce_ex__(protocol)

    def _generate_cache_key(self) -> CacheKey | None:
        call = _held(self).get("_call")
        # (Another thread may have built the statement meanwhile.)
        return self._generate_cache_key() if call is None else call.key

    def _compiler(self, dialect: Any, **options: Any) -> Any:
        call = _held(self).get("_call")
        if call is None or options.get("cache_key") is None:
            _build(self)
            return self._compiler(dialect, **options)
        # The SQL is cached, with the parameters that stand in the key: they must be those of the statement.
        template = call.template
        return template.statement._compiler(dialect, **options | {"cache_key": template.key})


@dataclass
class _Call:
    """What is known of a statement that is not built.

    :ivar labels: the columns that the search adds, by which rows can be asked for their values.
    """

    template: _Template
    build: Callable[[], SearchSelect[*tuple[Any, ...]]]
    query: Any
    parameters: Sequence[BindParameter[Any]]
    base: Select[*tuple[Any, ...]] | None

    @cached_property
    def key(self) -> CacheKey:
        return self.template.filled(self.query, self.parameters)

    def __post_init__(self) -> None:
        columns = self.template.statement._raw_columns
        self.labels = [OwnLabel(each.name, each.element) for each in columns if isinstance(each, OwnLabel)]

    def columns(self, of_template: Sequence[Any]) -> list[Any]:
        others = [each for each in of_template if not isinstance(each, OwnLabel)]
        return [*(others if self.base is None else self.base._raw_columns), *self.labels]


def _held(statement: Any) -> dict[str, Any]:
    """What a statement holds, without building it."""
    return cast("dict[str, Any]", object.__getattribute__(statement, "__dict__"))


def _build(statement: Any) -> None:
    with _building:
        call = _held(statement).get("_call")
        if call is None:
            return
        built = call.build()
        fresh = [each for each in built._raw_columns if isinstance(each, OwnLabel)]
        for label, other in zip(call.labels, fresh, strict=True):
            label.__dict__ = dict(vars(other))
        built._raw_columns = [*built._raw_columns[: -len(fresh)], *call.labels]
        _held(statement).update(vars(built))
        object.__setattr__(statement, "__class__", type(built))
        del _held(statement)["_call"]


#: What SQLAlchemy calls to execute a statement.
_OF_EXECUTION = {"_execute_on_connection", "_compile_w_cache", "_generate_cache_key", "_compiler"}
#: What it reads then that is the same for all statements of a template.
_OF_TEMPLATE = {
    "_compile_options",
    "_effective_plugin_target",
    "_execution_options",
    "_propagate_attrs",
    "_with_options",
    "is_dml",
    "supports_execution",
}
