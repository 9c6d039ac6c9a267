"""What counts as a vector, and what is said of everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pgvector
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column

from pgembed import Vector
from pgembed.columns import VectorType, as_array
from pgembed.columns.values import parse, to_text
from pgembed.exc import DeclarationError, DimensionMismatchError, MetricNotSupportedError, VectorValueError

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@given(FLOATS)
def test_the_text_form_is_exact(numbers: list[float]) -> None:
    array = np.array(numbers, dtype=np.float32)
    assert np.array_equal(parse(to_text(array)), array)


@pytest.mark.parametrize(
    "value",
    [[1, 2.5], (1, 2.5), np.array([1, 2.5]), pgvector.Vector([1, 2.5]), "[1,2.5]", b"[1, 2.5]"],
    ids=lambda value: type(value).__name__,
)
def test_usual_forms_are_understood(value: Any) -> None:
    array = as_array(value, 2)
    assert array.dtype == np.float32
    assert array.tolist() == [1, 2.5]
    assert not array.flags.writeable


@pytest.mark.parametrize("value", ["1,2", "[]", "[a]", [[1, 2]], 3, [float("inf")], ["x"], None, {1: 2}])
def test_everything_else_is_refused(value: Any) -> None:
    with pytest.raises(VectorValueError):
        as_array(value)


def test_dimensions_are_checked_and_named() -> None:
    with pytest.raises(DimensionMismatchError, match="has 2 dimensions, the column has 3") as error:
        as_array([1, 2], 3)
    assert (error.value.found, error.value.expected) == (2, 3)


@pytest.mark.parametrize("dimensions", [0, -1, 16001])
def test_types_have_pgvectors_limits(dimensions: int) -> None:
    with pytest.raises(DeclarationError, match="1 to 16000"):
        VectorType(dimensions)


def test_vector_is_the_type_at_run_time() -> None:
    assert Vector is VectorType
    assert VectorType(3).get_col_spec() == "VECTOR(3)"
    assert VectorType(3, "halfvec").get_col_spec() == "HALFVEC(3)"
    with pytest.raises(MetricNotSupportedError):
        Column("v", VectorType(3)).distance([1, 2, 3], "chebyshev")
