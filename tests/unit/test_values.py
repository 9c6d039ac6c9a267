"""What counts as a vector, and what is said of everything else."""

from __future__ import annotations

import array
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pgvector
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column

from pgembed import Vector
from pgembed.columns import VectorType, as_array
from pgembed.columns.values import elements, parse, received, to_text
from pgembed.exc import DeclarationError, DimensionMismatchError, MetricNotSupportedError, VectorValueError

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@given(FLOATS)
def test_the_text_form_is_exact(numbers: list[float]) -> None:
    array = np.array(numbers, dtype=np.float32)
    assert np.array_equal(parse(to_text(array)), array)


class Tensor:
    """As torch's: numbers, that are handed out on demand, or not at all where they have gradients."""

    def __init__(self, numbers: list[float], *, gradients: bool = False) -> None:
        self.numbers = numbers
        self.gradients = gradients

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.gradients:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return np.array(self.numbers, dtype=dtype)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5],
        (1, 2.5),
        [Decimal(1), Fraction(5, 2)],
        [np.float16(1), np.float64(2.5)],
        np.array([1, 2.5]),
        np.array([1, 2.5], dtype=">f8"),
        np.array([1, 2.5], dtype=">f4"),
        np.array([1, 2.5], dtype=np.float16),
        np.array([1, 0, 2.5, 0])[::2],
        np.ma.array([1, 2.5], mask=[False, False]),
        memoryview(np.array([1, 2.5])),
        array.array("f", [1, 2.5]),
        Tensor([1, 2.5]),
        pgvector.Vector([1, 2.5]),
        pgvector.HalfVector([1, 2.5]),
        pgvector.SparseVector([1, 2.5]),
        "[1,2.5]",
        b"[1, 2.5]",
        memoryview(b"[1,2.5]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_usual_forms_are_understood(value: Any) -> None:
    array = as_array(value, 2)
    assert array.dtype == np.float32
    assert array.tolist() == [1, 2.5]
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1,2", "text form"),
        ("[]", "text form"),
        ("[a]", "text form"),
        ("[1e40]", "infinity"),
        ("[nan]", "NaN"),
        (b"\x00\x01\xff", "frombuffer"),
        ([[1, 2]], r"the shape \(1, 2\)"),
        (np.zeros((2, 2)), "one axis"),
        ([[1], [1, 2]], "inhomogeneous"),
        (3, "one axis"),
        (None, "one axis"),
        ([], "0 dimensions, Postgres stores 1 to 16000"),
        (np.zeros(16001), "16001 dimensions"),
        ([float("inf")], "infinity"),
        ([1, None], "None"),
        ([1e300], "infinity"),
        ([10**400], "too large"),
        (["x"], "elements are of the type <U1"),
        (["1", "2"], "elements are of the type"),
        ([1, 2j], "complex"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "datetime64"),
        (np.ma.array([1, 2], mask=[True, False]), "masked"),
        ({1: 2}, "dict"),
        ({1, 2}, "set"),
        (Tensor([1], gradients=True), "requires grad"),
    ],
)
def test_everything_else_is_refused(value: Any, message: str) -> None:
    with pytest.raises(VectorValueError, match=message):
        as_array(value)


def test_halves_have_their_limit() -> None:
    assert as_array([65519.0, -65504], storage="halfvec").tolist() == [65519, -65504]
    for number in (65520, -70000, 1e30):
        with pytest.raises(VectorValueError, match="a halfvec at most 65504"):
            as_array([1, number], storage="halfvec")
        assert as_array([number])[0] == pytest.approx(number)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"[1,2.5]",NULL,[3]}', ["[1,2.5]", None, "[3]"]),
        ("{}", []),
        ('{{"[1,2]","[3,4]"},{NULL,"[5,6]"}}', [["[1,2]", "[3,4]"], [None, "[5,6]"]]),
        ('[2:3]={"[1e-05,2]",NULL}', ["[1e-05,2]", None]),
    ],
)
def test_arrays_in_text_form(text: str, expected: Any) -> None:
    assert elements(text) == expected


def test_what_comes_from_drivers() -> None:
    binary = struct.pack(">HH2f", 2, 0, 1, 2.5)
    half = struct.pack(">HH2e", 2, 0, 1, 2.5)
    for value in ("[1,2.5]", binary, half, [1, 2.5], pgvector.Vector([1, 2.5])):
        vector = received(value)
        assert (vector.tolist(), vector.dtype, vector.flags.writeable) == ([1, 2.5], np.float32, False)
    with pytest.raises(VectorValueError, match="expected a vector from the database"):
        received('{"[1,2]"}')


def test_dimensions_are_checked_and_named() -> None:
    with pytest.raises(DimensionMismatchError, match="has 2 dimensions, the column has 3") as error:
        as_array([1, 2], 3)
    assert (error.value.found, error.value.expected) == (2, 3)


@pytest.mark.parametrize("dimensions", [0, -1, 16001, 1.5, True, "8"])
def test_types_have_pgvectors_limits(dimensions: Any) -> None:
    with pytest.raises(DeclarationError, match="1 to 16000"):
        VectorType(dimensions)


def test_vector_is_the_type_at_run_time() -> None:
    assert Vector is VectorType
    assert VectorType(3).get_col_spec() == "VECTOR(3)"
    assert VectorType(3, "halfvec").get_col_spec() == "HALFVEC(3)"
    with pytest.raises(MetricNotSupportedError):
        Column("v", VectorType(3)).distance([1, 2, 3], "chebyshev")
