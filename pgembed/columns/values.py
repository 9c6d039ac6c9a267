"""Vectors as values: what counts as one, its text form, and its way through psycopg."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgembed.exc import DimensionMismatchError, VectorValueError

Array: TypeAlias = NDArray[np.float32]
Storage: TypeAlias = Literal["vector", "halfvec"]


def as_array(value: Any, dimensions: int | None = None) -> Array:
    """A vector given in any usual form (array, list, tuple, pgvector object) as read-only float32 ``(d,)``.

    :param dimensions: how many dimensions it must have; ``None`` for any number.
    :raises VectorValueError: not one-dimensional, not numeric, or with NaN or infinity in it.
    :raises DimensionMismatchError: another number of dimensions.
    """
    if hasattr(value, "to_numpy"):  # pgvector's own Vector and HalfVector
        value = value.to_numpy()
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode()
    if isinstance(value, str):
        value = parse(value)
    try:
        array = np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise VectorValueError(f"not a vector: {type(value).__name__} ({error})") from None
    if array.ndim != 1:
        raise VectorValueError(f"a vector has one axis, this array has the shape {array.shape}")
    if dimensions is not None and array.shape[0] != dimensions:
        raise DimensionMismatchError(array.shape[0], dimensions)
    if not np.isfinite(array).all():
        raise VectorValueError("the vector holds NaN or infinity, which Postgres refuses")
    array.flags.writeable = False
    return array


def parse(text: str) -> Array:
    """pgvector's text form ``[1,2,3]`` as float32 ``(d,)``.

    :raises VectorValueError: the text is not of that form.
    """
    body = text.strip()
    if len(body) < 3 or body[0] != "[" or body[-1] != "]":
        raise VectorValueError(f"not a vector in text form: {text[:40]!r}")
    try:
        return np.array(body[1:-1].split(","), dtype=np.float32)
    except ValueError as error:
        raise VectorValueError(f"not a vector in text form: {error}") from None


def to_text(array: Array) -> str:
    """float32 ``(d,)`` in pgvector's text form, exact."""
    return "[" + ",".join(map(str, array.tolist())) + "]"


class BinaryVector:
    """A vector on its way through psycopg: see :mod:`pgembed.columns.psycopg_dumpers`."""

    __slots__ = ("array", "storage")

    def __init__(self, array: Array, storage: Storage) -> None:
        self.array = array
        self.storage = storage

    def __repr__(self) -> str:  # shown by echo=True and in the messages of failed statements
        return f"<{self.storage} of {self.array.shape[0]} dimensions>"


class VectorArray:
    """Vectors on their way through psycopg: float32 ``(n, d)`` as the array of n pgvector values."""

    __slots__ = ("type_oid", "vectors", "width")

    def __init__(self, vectors: Array, type_oid: int, width: int) -> None:
        self.vectors = vectors
        self.type_oid = type_oid
        self.width = width

    def __repr__(self) -> str:  # shown by echo=True and in the messages of failed statements
        return f"<{len(self.vectors)} vectors>"

    def to_binary(self) -> bytes:
        """The form that ``array_recv`` reads, whose elements are in the form that ``vector_recv`` reads."""
        rows, dimensions = self.vectors.shape
        head = np.array([1, 0, self.type_oid, rows, 1], dtype=">u4").tobytes()
        element = np.dtype(
            [
                ("size", ">i4"),
                ("dimensions", ">u2"),
                ("reserved", ">u2"),
                ("numbers", f">f{self.width}", (dimensions,)),
            ]
        )
        body = np.zeros(rows, dtype=element)
        body["size"] = 4 + self.width * dimensions
        body["dimensions"] = dimensions
        body["numbers"] = self.vectors
        return head + body.tobytes()
