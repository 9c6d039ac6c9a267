"""pgvector's search settings, asked for inside the statement that needs them.

They come as a CTE that calls ``set_config(..., true)``: the settings last until the end of the transaction
and never longer, in autocommit until the end of the statement. Whatever scans an index refers to the CTE
from within a LATERAL subquery, so that the settings are made before the scan begins. (A statement with
``set_config`` is not planned in parallel, which is why exact statements come without.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Integer, String, cast, func, literal_column, select
from sqlalchemy.sql.selectable import CTE

from pgembed.exc import QueryError
from pgembed.indexes import ACCESS_METHODS, Indexed, access_method_of
from pgembed.indexes.methods import AUTO, Search
from pgembed.indexes.readiness import is_ready, parameter
from pgembed.queries.arguments import whole
from pgembed.queries.statement import materialized

#: What pgvector takes.
_RANGES = {
    search.argument: (search.low, search.high)
    for method in ACCESS_METHODS.values()
    if (search := method.search) is not None
}


@dataclass(frozen=True)
class SearchSettings:
    """How thoroughly an index is searched; ``None`` leaves it to the number of rows asked for."""

    ef_search: int | None = None
    probes: int | None = None

    def __post_init__(self) -> None:
        for name, bounds in _RANGES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), *bounds))
        if self.ef_search is not None and self.probes is not None:
            raise QueryError("ef_search is for HNSW and probes for IVFFlat: pass one of them")

    def refuse(self, reason: str) -> None:
        """Settings that would have no effect are a mistake.

        :raises QueryError: there are any.
        """
        for name in _RANGES:
            if getattr(self, name) is not None:
                raise QueryError(f"{name}={getattr(self, name)} has no effect: {reason}")

    def cte(self, index: Indexed | None, rows: int) -> CTE:
        """The settings for a scan that is asked for ``rows`` rows, as a CTE with the column ``applied``.

        HNSW's candidate list is made twice as long as the rows asked for, within 40 to 1000, and as long as
        the candidates that are compared again; the scan goes on in strict order where that does not do.
        IVFFlat looks into the square root of its lists. A higher value that the session has set already is
        kept.

        An index that does not hold whole vectors is used only where it stands: without it, the CTE has no
        row, and nothing is looked for in the order that only the index is good for.

        :raises QueryError: a setting of another access method.
        """
        calls = self._calls(index, rows)
        applied: ColumnElement[Any] = func.concat(*calls) if calls else literal_column("''")
        settings = select(applied.label("applied"))
        if index is not None and not index.whole:
            settings = settings.where(is_ready(index))
        return materialized(settings, "settings")

    def _calls(self, index: Indexed | None, rows: int) -> list[ColumnElement[str]]:
        name = access_method_of(index.index) if index else ("ivfflat" if self.probes else "hnsw")
        search = ACCESS_METHODS[name].search
        given = {setting: getattr(self, setting) for setting in _RANGES}
        value = None if search is None else given.pop(search.argument)
        for other, refused in given.items():
            if refused is not None:
                which = "an index" if index is None else str(index.index.name)
                instead = "" if search is None else f": use {search.argument}="
                raise QueryError(f"{other}= is not for {which}, which is of the method {name}{instead}")
        if search is None:
            return []
        applied: str | ColumnElement[str] = str(value)
        if value is None:
            applied = _at_least(search.setting, suitable(search, index, rows, _parameters(index, name)))
        return [_set(search.setting, applied), *([_set(*search.iterative)] if search.iterative else [])]


def suitable(search: Search, index: Indexed | None, rows: int, parameters: Mapping[str, Any]) -> Any:
    """The setting that ``rows`` rows need, and the candidates that are compared again for them.

    :param parameters: the storage parameters of the index: numbers, or SQL.
    """
    wanted = rows if index is None else max(rows, math.ceil(index.candidates(rows) / 2))
    return search.suitable(wanted, parameters)


def _parameters(index: Indexed | None, name: str) -> dict[str, Any]:
    """The storage parameters of an index: those that are declared, or SQL for one that is not known yet."""
    defaults = ACCESS_METHODS[name].defaults
    if index is None:
        return dict(defaults)
    options = index.index.dialect_options["postgresql"]
    stated = getattr(index.index, "parameters", None) or options["with"] or {}
    return defaults | {
        key: parameter(index, key, defaults[key]) if value == AUTO else int(value)
        for key, value in stated.items()
    }


def _set(name: str, value: str | ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(name, value, True)


def _at_least(name: str, value: int | ColumnElement[int]) -> ColumnElement[str]:
    # Empty or NULL as long as nothing has loaded the extension's library in this connection.
    current = cast(func.nullif(func.current_setting(name, True), ""), Integer)
    return cast(func.greatest(current, value), String)
