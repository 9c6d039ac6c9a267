"""pgvector's search settings, asked for inside the statement that needs them.

They come as a CTE that calls ``set_config(..., true)``: the settings last until the end of the transaction
and never longer, in autocommit until the end of the statement. Whatever scans an index refers to the CTE
from within a LATERAL subquery, so that the settings are made before the scan begins. (A statement with
``set_config`` is not planned in parallel, which is why exact statements come without.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Index, Integer, String, cast, func, select
from sqlalchemy.sql.selectable import CTE

from pgembed.exc import QueryError
from pgembed.indexes import access_method_of
from pgembed.queries.ctes import materialized

#: What pgvector takes (https://github.com/pgvector/pgvector#query-options).
_RANGES = {"ef_search": (1, 1000), "probes": (1, 32768)}


@dataclass(frozen=True)
class SearchSettings:
    """How thoroughly an index is searched; ``None`` leaves it to the number of rows asked for."""

    ef_search: int | None = None
    probes: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and low <= value <= high):
                raise QueryError(f"{name}={value!r}; pgvector takes {low} to {high}")
        if self.ef_search is not None and self.probes is not None:
            raise QueryError("ef_search is for HNSW and probes for IVFFlat: pass one of them")

    def refuse(self, reason: str) -> None:
        """Settings that would have no effect are a mistake.

        :raises QueryError: there are any.
        """
        for name in _RANGES:
            if getattr(self, name) is not None:
                raise QueryError(f"{name}={getattr(self, name)} has no effect: {reason}")

    def cte(self, index: Index | None, rows: int) -> CTE:
        """The settings for a scan that is asked for ``rows`` rows, as a CTE with the column ``applied``.

        HNSW's candidate list is made twice as long as the rows asked for, within 40 to 1000, and the scan
        goes on in strict order where that does not do; IVFFlat looks into the square root of its lists. A
        higher value that the session has set already is kept.

        :raises QueryError: a setting of the other access method.
        """
        method = access_method_of(index) if index is not None else ("ivfflat" if self.probes else "hnsw")
        if method == "hnsw":
            if self.probes is not None:
                raise QueryError(f"probes is for IVFFlat, {_named(index)} is an HNSW index: use ef_search=")
            ours = min(max(2 * rows, 40), 1000)
            value = _at_least("hnsw.ef_search", ours) if self.ef_search is None else _text(self.ef_search)
            calls = (_set("hnsw.ef_search", value), _set("hnsw.iterative_scan", "strict_order"))
        else:
            if self.ef_search is not None:
                raise QueryError(f"ef_search is for HNSW, {_named(index)} is an IVFFlat index: use probes=")
            ours = math.ceil(math.sqrt(_lists(index)))
            value = _at_least("ivfflat.probes", ours) if self.probes is None else _text(self.probes)
            calls = (_set("ivfflat.probes", value), _set("ivfflat.iterative_scan", "relaxed_order"))
        return materialized(select(func.concat(*calls).label("applied")), "settings")


def _set(name: str, value: str | ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(name, value, True)


def _text(value: int) -> ColumnElement[str]:
    return cast(value, String)


def _at_least(name: str, value: int) -> ColumnElement[str]:
    # Empty or NULL as long as nothing has loaded the extension's library in this connection.
    current = cast(func.nullif(func.current_setting(name, True), ""), Integer)
    return cast(func.greatest(current, value), String)


def _lists(index: Index | None) -> int:
    stated = {} if index is None else index.dialect_options["postgresql"]["with"] or {}
    return int(stated.get("lists", 100))


def _named(index: Index | None) -> str:
    return "the index" if index is None else str(index.name)
