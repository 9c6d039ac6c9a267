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

from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    case,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.sql.selectable import CTE, FromClause

from pgembed.constants import SCAN_BOUNDS, SCAN_MET, SCAN_SHARE
from pgembed.exc import QueryError
from pgembed.indexes import ACCESS_METHODS, Indexed, access_method_of
from pgembed.indexes.methods import AUTO, Search
from pgembed.indexes.readiness import is_ready, parameter, returned, size
from pgembed.indexes.tables import stated_parameters
from pgembed.queries.core.arguments import MOST, whole
from pgembed.queries.core.statement import materialized

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

    def cte(
        self, index: Indexed | None, rows: int, *, filtered: bool = False, table: FromClause | None = None
    ) -> CTE:
        """The settings for a scan that is asked for ``rows`` rows, as a CTE with the column ``applied``.

        HNSW's candidate list is made twice as long as the rows asked for, within 40 to 1000, and as long as
        the candidates that are compared again; the scan goes on in strict order where that does not do.
        IVFFlat looks into the square root of its lists. A higher value that the session has set already is
        kept.

        Under conditions the scan goes on in relaxed order, since the strict one drops the rows that it meets
        too late. It gives up after a fiftieth of the table, or after 2,000 rows.

        An index that does not hold whole vectors is used only where it stands: without it, the CTE has no
        row, and nothing is looked for in the order that only the index is good for.

        :param filtered: whether conditions decide which rows are found.
        :param table: the table behind the index, where what scans return is counted.
        :raises QueryError: a setting of another access method.
        """
        calls = self._calls(index, rows, filtered, table)
        applied: ColumnElement[Any] = func.concat(*calls) if calls else literal_column("''")
        settings = select(applied.label("applied"))
        if table is not None:
            settings = settings.add_columns(returned(table).label("returned"))
        if index is not None and not index.whole:
            settings = settings.where(is_ready(index))
        return materialized(settings, "settings")

    def suffices(
        self, index: Indexed, table: FromClause, settings: CTE, found: ColumnElement[bool]
    ) -> ColumnElement[bool]:
        """SQL: a scan under conditions that is over has found what an exact one would have.

        That is so if the planner has not used an index at all, and if the rows are ``found`` among the first
        that the index has returned.
        """
        rows = returned(table) - select(settings.c.returned).scalar_subquery()
        search = ACCESS_METHODS[access_method_of(index.index)].search
        most: ColumnElement[Any] = literal_column(str(MOST))
        if search is not None and search.bound:
            most = cast(func.current_setting(search.bound), Integer) / SCAN_MET
        return func.coalesce(rows <= case((found, most), else_=0), found)

    def _calls(
        self, index: Indexed | None, rows: int, filtered: bool, table: FromClause | None
    ) -> list[ColumnElement[str]]:
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
        calls = [_set(search.setting, applied)]
        if search.iterative:
            setting, order = search.iterative
            calls.append(_set(setting, search.filtered if filtered else order))
        if search.bound and table is not None:
            share = func.least(func.greatest(size(table) / SCAN_SHARE, SCAN_BOUNDS.least), SCAN_BOUNDS.most)
            met = SCAN_MET * func.greatest(
                cast(share, Integer), cast(applied, Integer) if value is None else value
            )
            calls.append(_set(search.bound, cast(met, String)))
        return calls


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
    return defaults | {
        key: parameter(index, key, defaults[key]) if value == AUTO else int(value)
        for key, value in stated_parameters(index.index).items()
    }


def _set(name: str, value: str | ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(name, value, True)


def _at_least(name: str, value: int | ColumnElement[int]) -> ColumnElement[str]:
    # Empty or NULL as long as nothing has loaded the extension's library in this connection.
    current = cast(func.nullif(func.current_setting(name, True), ""), Integer)
    return cast(func.greatest(current, value), String)
