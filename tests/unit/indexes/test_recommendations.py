"""Which index suits how many rows."""

from __future__ import annotations

import pytest

from pgembed.indexes.build_plan import recommend
from pgembed.indexes.methods import suitable_lists


@pytest.mark.parametrize(
    ("rows", "dimensions", "expected"),
    [
        (9_999, 384, "no index"),
        (10_000, 384, "ef_construction=64)"),
        (10_000, 1024, 'ef_construction=64, quantize="half")'),
        (2_000_000, 384, 'ef_construction=128, quantize="half")'),
        (20_000_000, 384, 'quantize="bit"), or partitions'),
    ],
)
def test_recommendations(rows: int, dimensions: int, expected: str) -> None:
    assert expected in recommend(rows, dimensions)


@pytest.mark.parametrize(("rows", "lists"), [(10, 1), (50_000, 50), (1_000_000, 1000), (4_000_000, 2000)])
def test_lists(rows: int, lists: int) -> None:
    assert suitable_lists(rows) == lists
