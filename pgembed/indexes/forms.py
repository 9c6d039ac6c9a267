"""Standing indexes in the terms of declarations: ``quantize=``, ``dimensions=``, ``where=``."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Column, Connection

from pgembed.columns.types import shape_of
from pgembed.indexes.catalogue import StandingIndex, standing
from pgembed.indexes.declaration import HNSW, IVFFlat, VectorIndex
from pgembed.indexes.indexed import Quantize

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
