"""Sizes of indexes, against sizes of real ones and against properties that they must have."""

from __future__ import annotations

import pytest

from pgembed.indexes import sizes


def test_sizes_of_values() -> None:
    assert sizes.vector_size("vector", 384) == 1544
    assert sizes.vector_size("halfvec", 384) == 776


def test_a_page_holds_whole_nodes() -> None:
    """1,024 dimensions take as much of the disk as 1,536: one node a page."""
    at_1024 = sizes.hnsw_disk(1000, sizes.vector_size("vector", 1024), 16)
    assert at_1024 == sizes.hnsw_disk(1000, sizes.vector_size("vector", 1536), 16) == 1001 * 8192
    assert sizes.hnsw_disk(1000, sizes.vector_size("halfvec", 1024), 16) < 0.34 * at_1024


def test_a_node_larger_than_a_page_takes_two() -> None:
    assert sizes.hnsw_disk(10, sizes.vector_size("vector", 2000), 16) == 21 * 8192


def test_the_index_of_twenty_thousand_rows() -> None:
    """Measured with pgvector 0.8.5: 20,000 vectors of 384 dimensions."""
    assert sizes.hnsw_disk(20_000, 1544, 16) == pytest.approx(40_968_192, rel=0.01)
    assert sizes.ivfflat_disk(20_000, 1544, 20) == pytest.approx(32_858_112, rel=0.01)


def test_work_memory_holds_the_build_and_allows_workers() -> None:
    assert sizes.work_memory(100 * 1024**2, 0) >= 110 * 1024**2
    assert sizes.work_memory(1024, 2) == 96 * 1024**2
    assert sizes.work_memory(0, 0) % 1024 == 0
    assert sizes.work_memory(10**16, 0) == 2147483647 * 1024


@pytest.mark.parametrize(
    ("size", "text"),
    [(17, "17 bytes"), (1536, "1.5 kB"), (52.1 * 1024**2, "52.1 MB"), (2 * 1024**4, "2.0 TB")],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert sizes.readable(size) == text
