"""What a column needs of an encoder, and what is taken for its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pgembed.columns.values import Array
from pgembed.exc import EncoderAnswerError


@runtime_checkable
class TextEncoder(Protocol):
    """What a column needs of its encoder; :class:`pgembed.Encoder` is one.

    Both methods return one vector per text, in the order of the texts: a float32 array of the shape
    ``(len(texts), dimensions)``; see :func:`answered`. They are called from several threads at once.
    """

    @property
    def name(self) -> str:
        """What errors, the database and the command line call it."""
        ...

    @property
    def dimensions(self) -> int:
        """Dimensions of the vectors; known when the column is declared."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors of documents do. It is part of each row's digest."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Array:
        """Vectors of texts that are stored and searched."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Array:
        """Vectors of texts that are searched with."""
        ...


def answered(
    encoder: TextEncoder,
    answer: Any,
    count: int,
    *,
    column: object,
    refuse: Callable[[int, EncoderAnswerError], None] | None = None,
) -> Array:
    """An encoder's answer to ``count`` texts, as float32 of shape ``(count, dimensions)``.

    Whatever numpy reads as an array of numbers is taken (lists, floats of other widths, tensors on the CPU)
    and rounded to float32.

    :param column: the column that the texts are for.
    :param refuse: takes the position of each vector that holds NaN or infinity, and the error, which is
        raised otherwise.
    :raises EncoderAnswerError: another shape, something else than numbers, or numbers that are not finite.
    """

    def wrong(found: str) -> EncoderAnswerError:
        return EncoderAnswerError(
            encoder.name, str(column), found, count=count, dimensions=encoder.dimensions
        )

    try:
        array = np.asarray(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong(f"a {type(answer).__name__} that is not an array ({error})") from error
    if array.shape != (count, encoder.dimensions):
        raise wrong(f"an array of the shape {array.shape}" if array.ndim else f"a {type(answer).__name__}")
    if array.dtype.kind not in "fiu":
        raise wrong(f"an array of {array.dtype}")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, dtype=np.float32)
    for position in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        problem = wrong(f"NaN or infinity in vector {position}")
        if refuse is None:
            raise problem
        refuse(int(position), problem)
    return vectors
