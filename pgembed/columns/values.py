"""Vectors as values: what counts as one, its text form, and its way through psycopg."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, TypeAlias

import numpy as np
import pgvector
from numpy.typing import NDArray

from pgembed.constants import MAX_DIMENSIONS
from pgembed.exc import DimensionMismatchError, VectorValueError

Array: TypeAlias = NDArray[np.float32]
Storage: TypeAlias = Literal["vector", "halfvec"]


#: The largest number of a halfvec; from 65520 on, rounding gives infinity.
HALF_MAX = 65504
_HALF_OVERFLOW = 65520


def as_array(value: Any, dimensions: int | None = None, storage: Storage = "vector") -> Array:
    """A vector given in any usual form as read-only float32 ``(d,)``, a copy.

    Arrays of numbers are understood in any width and byte order, and so are lists, tuples, buffers of
    numbers, tensors and series (whatever has ``to_numpy()`` or ``__array__()``), pgvector's objects, and
    pgvector's text form as ``str`` or ``bytes``.

    :param dimensions: how many dimensions it must have; ``None`` for any number.
    :param storage: the type that it is for: a halfvec holds numbers up to 65504.
    :raises VectorValueError: not one-dimensional, not numbers, or with NaN, infinity or a number in it that
        the type cannot hold.
    :raises DimensionMismatchError: another number of dimensions.
    """
    if hasattr(value, "to_numpy"):  # pgvector's own objects; series and frames
        value = value.to_numpy()
    if isinstance(value, bytes | bytearray) or (isinstance(value, memoryview) and value.format == "B"):
        value = _decoded(bytes(value))
    array = parse(value) if isinstance(value, str) else _numbers(value)
    if array.ndim != 1:
        raise VectorValueError(f"a vector has one axis, this array has the shape {array.shape}")
    if dimensions is not None and array.shape[0] != dimensions:
        raise DimensionMismatchError(array.shape[0], dimensions)
    if not 1 <= array.shape[0] <= MAX_DIMENSIONS[storage]:
        raise VectorValueError(
            f"the vector has {array.shape[0]} dimensions, Postgres stores 1 to {MAX_DIMENSIONS[storage]}"
        )
    if not np.isfinite(array).all():
        raise VectorValueError(
            "the vector holds NaN or infinity, which Postgres refuses (so are None and numbers above 3.4e38)"
        )
    if storage == "halfvec" and (largest := np.abs(array).max()) >= _HALF_OVERFLOW:
        raise VectorValueError(
            f"the vector holds {largest:g}, a halfvec at most {HALF_MAX}: scale the vector, or declare the "
            'column with type="vector"'
        )
    array.flags.writeable = False
    return array


def as_bits(value: Any, dimensions: int) -> str:
    """Bits given as text, booleans, an array, bytes or an object of pgvector or asyncpg, as ``"0110"``.

    :raises VectorValueError: they are none.
    :raises DimensionMismatchError: another number of them.
    """
    if hasattr(value, "as_string"):  # asyncpg's, in groups of four
        value = value.as_string().replace(" ", "")
    if isinstance(value, pgvector.Bit):
        value = value.to_text()
    elif isinstance(value, bytes):
        value = np.unpackbits(np.frombuffer(value, dtype=np.uint8))
    if not isinstance(value, str):
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise VectorValueError(f"not bits: {type(value).__name__} of {array.dtype}")
        value = "".join(map(str, array.astype(int)))
    bits = str(value)
    if not set(bits) <= {"0", "1"}:
        raise VectorValueError(f"not bits: {bits[:40]!r}")
    if len(bits) != dimensions:
        raise DimensionMismatchError(len(bits), dimensions)
    return bits


def as_sparse(value: Any, dimensions: int | None = None) -> Any:
    """A sparse vector given as text (``{1:0.5,3:2}/8``), numbers or an object of SciPy, as one of pgvector.

    :raises VectorValueError: it is none, or holds NaN or infinity.
    :raises DimensionMismatchError: another number of dimensions.
    """
    try:
        if isinstance(value, str):
            sparse = pgvector.SparseVector.from_text(value)
        else:
            sparse = value if isinstance(value, pgvector.SparseVector) else pgvector.SparseVector(value)
        numbers = np.array(sparse.values(), dtype=np.float32)
    except (TypeError, ValueError, IndexError) as error:
        raise VectorValueError(f"not a sparse vector: {type(value).__name__} ({error})") from None
    if dimensions is not None and sparse.dimensions() != dimensions:
        raise DimensionMismatchError(sparse.dimensions(), dimensions)
    if not all(0 <= place < sparse.dimensions() for place in sparse.indices()):
        raise VectorValueError(f"the sparse vector has places outside of 1 to {sparse.dimensions()}")
    if not np.isfinite(numbers).all():
        raise VectorValueError("the vector holds NaN or infinity, which Postgres refuses")
    return sparse


def _decoded(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise VectorValueError(
            "bytes are read as pgvector's text form, [1,2,3]; for the numbers themselves pass "
            "numpy.frombuffer(value, dtype=...)"
        ) from None


def _numbers(value: Any) -> Array:
    """Numbers as float32; an error for anything else that numpy would take for numbers."""
    try:
        raw = np.asarray(value)
        if raw.dtype.kind in "cMmUS":  # numpy drops imaginary parts, counts days and reads texts
            raise TypeError(f"its elements are of the type {raw.dtype}")
        if np.ma.is_masked(value):
            raise ValueError("elements of it are masked")
        with np.errstate(over="ignore"):  # infinity is refused, by name
            return np.array(raw, dtype=np.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last: torch, with gradients
        raise VectorValueError(f"not a vector: {type(value).__name__} ({error})") from None


def parse(text: str) -> Array:
    """pgvector's text form ``[1,2,3]`` as float32 ``(d,)``.

    :raises VectorValueError: the text is not of that form.
    """
    body = text.strip()
    if len(body) < 3 or body[0] != "[" or body[-1] != "]":
        raise VectorValueError(f"not a vector in text form: {text[:40]!r}")
    try:
        with np.errstate(over="ignore"):
            return np.array([float(number) for number in body[1:-1].split(",")], dtype=np.float32)
    except ValueError as error:
        raise VectorValueError(f"not a vector in text form: {error}") from None


def received(value: Any) -> Array:
    """A vector as it comes from a driver, as read-only float32 ``(d,)``: text, binary, or what an adapter
    of the connection made of it."""
    if isinstance(value, str):
        if value[:1] != "[":  # an array, for one, that the driver does not know
            raise VectorValueError(f"expected a vector from the database, got {value[:40]!r}")
        array = np.fromstring(value[1:-1], dtype=np.float32, sep=",")
    elif isinstance(value, bytes) and value[:1] != b"[":
        width = (len(value) - 4) // int.from_bytes(value[:2], "big")
        array = np.frombuffer(value, dtype=f">f{width}", offset=4).astype(np.float32)
    else:
        return as_array(value)
    array.flags.writeable = False
    return array


def elements(text: str) -> Any:
    """The text form of an array, ``{"[1,2]",NULL}``, as (nested) lists of the text forms of its vectors."""
    body = text.partition("=")[2] or text  # after the bounds, [2:3]=
    quoted = re.sub(r'"?(\[[^]]*\])"?', r'"\1"', body)
    return json.loads(quoted.replace("{", "[").replace("}", "]").replace("NULL", "null"))


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


class TextVector(str, pgvector.Vector):
    """A vector on its way through asyncpg: its text form, and the object of pgvector's Python package.

    asyncpg sends the text form, unless pgvector's ``register_vector`` has put its codec on the connection,
    which only takes its own objects.
    """

    def __new__(cls, array: Array) -> TextVector:
        return super().__new__(cls, to_text(array))


class TextHalfVector(str, pgvector.HalfVector):
    """:class:`TextVector` of a halfvec."""

    def __new__(cls, array: Array) -> TextHalfVector:
        return super().__new__(cls, to_text(array))


def sent(array: Array, storage: Storage, driver: str) -> Any:
    """A vector in the form that a driver of SQLAlchemy takes, whatever adapters its connection has."""
    if driver in ("psycopg", "psycopg_async"):
        return BinaryVector(array, storage)
    if driver == "asyncpg":
        return TextVector(array) if storage == "vector" else TextHalfVector(array)
    return to_text(array)


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
        with np.errstate(over="ignore"):  # Postgres refuses infinity
            body["numbers"] = self.vectors
        return head + body.tobytes()
