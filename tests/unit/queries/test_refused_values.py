"""Values that would give wrong rows without an error of the database."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from pgembed import knn_classify, semantic_search
from pgembed.columns import VectorType
from pgembed.exc import QueryError

table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("v", VectorType(2)))


def test_a_distance_that_is_no_number() -> None:
    with pytest.raises(QueryError, match="max_distance=nan"):
        semantic_search(table.c.v, [1, 2], max_distance=float("nan"))


@pytest.mark.parametrize("label", ["section", None])
def test_a_label_that_is_no_expression(label: Any) -> None:
    with pytest.raises(QueryError, match="needed is an attribute or expression"):
        knn_classify(table.c.v, [1, 2], label=label)
