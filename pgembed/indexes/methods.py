"""The access methods of vector indexes, written once: what they index, their parameters and settings.

One more (pgvectorscale's diskann, VectorChord's vchordrq) is one more entry::

    ACCESS_METHODS["diskann"] = AccessMethod(
        name="diskann",
        dimensions={"vector": 16000},
        metrics={"vector": ("cosine", "l2", "inner_product")},
        parameters={"num_neighbors": Parameter(50, 10, 1000)},
        search=Search("ef_search", "diskann.query_rescore", 0, 1000, lambda rows, _: max(50, 2 * rows)),
    )

and its indexes are declared as ``VectorIndex("embedding", using="diskann", parameters={...})``. Searches,
``create`` and autogenerate look here; the cost of a build, and its recall, are only known for pgvector's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Integer, cast, func

from pgembed.constants import (
    EF_SEARCH,
    EF_SEARCH_FLOOR,
    EF_SEARCH_PER_ROW,
    ITERATIVE_SCAN,
    LISTS,
    LISTS_DEFAULT,
    PROBES,
)
from pgembed.exc import DeclarationError

#: The value of a storage parameter that is found from the number of rows when the index is built.
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Parameter:
    """A storage parameter: its default, its range, and what suits a number of rows."""

    default: int
    low: int
    high: int
    suitable: Callable[[int], int] | None = None


@dataclass(frozen=True)
class Search:
    """How thoroughly an index is searched.

    :ivar argument: what the query helpers call it: ``"ef_search"`` or ``"probes"``.
    :ivar setting: the server's setting behind it, within ``low`` and ``high``.
    :ivar suitable: the value for a number of rows, given the storage parameters: numbers, or SQL where
        a parameter is found when the index is built.
    :ivar iterative: the setting that has a scan go on where it found too few rows, and its value.
    :ivar filtered: its value under conditions, where the rows found are sorted once more.
    :ivar bound: the setting that says after how many rows a scan gives up.
    """

    argument: str
    setting: str
    low: int
    high: int
    suitable: Callable[[int, Mapping[str, Any]], Any]
    iterative: tuple[str, str] | None = None
    filtered: str = ITERATIVE_SCAN["ivfflat"]
    bound: str | None = None


@dataclass(frozen=True)
class AccessMethod:
    """An access method for vectors.

    :ivar dimensions: the most dimensions that it indexes, by type; what is not here it does not index.
    :ivar metrics: the metrics that it has operator classes for, by type.
    :ivar least: the fewest dimensions that it indexes, by metric, where that is not 1.
    :ivar check: refuses combinations of parameters; raises :class:`~pgembed.exc.DeclarationError`.
    """

    name: str
    dimensions: Mapping[str, int]
    metrics: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    search: Search | None = None
    least: Mapping[str, int] = field(default_factory=dict)
    default_opclass: str | None = None
    check: Callable[[Mapping[str, int]], None] = lambda _: None

    @property
    def defaults(self) -> dict[str, int]:
        """The storage parameters where none is stated."""
        return {name: facts.default for name, facts in self.parameters.items()}

    def check_parameters(self, stated: Mapping[str, int | str]) -> None:
        """:raises DeclarationError: an unknown parameter, or one out of its range."""
        numbers = self.defaults
        for name, value in stated.items():
            facts = self.parameters.get(name)
            if facts is None:
                raise DeclarationError(
                    f"{self.name} has no parameter {name!r}; it has {', '.join(self.parameters) or 'none'}"
                )
            if value == AUTO and facts.suitable is not None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not facts.low <= value <= facts.high:
                auto = "" if facts.suitable is None else f', or "{AUTO}"'
                raise DeclarationError(
                    f"{name}={value!r}; {self.name} takes {facts.low} to {facts.high}{auto}"
                )
            numbers[name] = value
        self.check(numbers)

    def parameters_for(self, stated: Mapping[str, int | str], rows: int) -> dict[str, int]:
        """The stated storage parameters, of an index that is built on this number of rows."""
        resolved = {}
        for name, value in stated.items():
            suitable = self.parameters[name].suitable if name in self.parameters else None
            resolved[name] = suitable(rows) if value == AUTO and suitable is not None else int(value)
        return resolved


def suitable_lists(rows: int) -> int:
    """pgvector's advice: rows / 1000 up to a million rows, above it their square root."""
    return min(max(1, rows // 1000 if rows <= 1_000_000 else math.isqrt(rows)), LISTS.most)


def _root(lists: Any) -> Any:
    """The square root, rounded up."""
    if isinstance(lists, int):
        return math.ceil(math.sqrt(lists))
    return cast(func.ceil(func.sqrt(lists)), Integer)


def _check_hnsw(parameters: Mapping[str, int]) -> None:
    m, ef_construction = parameters["m"], parameters["ef_construction"]
    if ef_construction < 2 * m:
        raise DeclarationError(
            f"ef_construction={ef_construction} is below 2 m = {2 * m}, which pgvector refuses"
        )


#: Every access method, by name. The ones that are here are pgvector's, with the limits of pgvector 0.8.
ACCESS_METHODS: dict[str, AccessMethod] = {
    "hnsw": AccessMethod(
        name="hnsw",
        # Of a sparsevec any number of dimensions, and 1,000 of them other than zero.
        dimensions={"vector": 2000, "halfvec": 4000, "bit": 64000, "sparsevec": 1_000_000_000},
        metrics={
            "vector": ("cosine", "l2", "inner_product", "l1"),
            "halfvec": ("cosine", "l2", "inner_product", "l1"),
            "sparsevec": ("cosine", "l2", "inner_product", "l1"),
            "bit": ("hamming", "jaccard"),
        },
        parameters={"m": Parameter(16, 2, 100), "ef_construction": Parameter(64, 4, 1000)},
        search=Search(
            "ef_search",
            "hnsw.ef_search",
            *EF_SEARCH,
            lambda rows, _: min(max(EF_SEARCH_PER_ROW * rows, EF_SEARCH_FLOOR), EF_SEARCH.most),
            ("hnsw.iterative_scan", ITERATIVE_SCAN["hnsw"]),
            bound="hnsw.max_scan_tuples",
        ),
        check=_check_hnsw,
    ),
    "ivfflat": AccessMethod(
        name="ivfflat",
        dimensions={"vector": 2000, "halfvec": 4000, "bit": 64000},
        metrics={
            "vector": ("cosine", "l2", "inner_product"),
            "halfvec": ("cosine", "l2", "inner_product"),
            "bit": ("hamming",),
        },
        parameters={"lists": Parameter(LISTS_DEFAULT, *LISTS, suitable_lists)},
        search=Search(
            "probes",
            "ivfflat.probes",
            *PROBES,
            lambda _, parameters: _root(parameters["lists"]),
            ("ivfflat.iterative_scan", ITERATIVE_SCAN["ivfflat"]),
        ),
        least={"cosine": 2, "inner_product": 2},  # its clusters are directions
        default_opclass="vector_l2_ops",
    ),
}


def access_method(name: str) -> AccessMethod:
    """The access method called ``name``.

    :raises DeclarationError: none of that name is in the table.
    """
    try:
        return ACCESS_METHODS[name]
    except KeyError:
        raise DeclarationError(
            f"no access method {name!r}; there are {', '.join(ACCESS_METHODS)}, and "
            "pgembed.indexes.methods.ACCESS_METHODS takes others"
        ) from None
