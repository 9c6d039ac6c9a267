"""What computes vectors: the shapes that a session of this process and a server share."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Kind = Literal["document", "query"]
Vectors = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """Vectors of texts.

    :ivar vectors: float32 of shape (texts, dimensions).
    :ivar counts: tokens of each text, as many as were computed with; 0 where only a server knows.
    :ivar cut: how many texts were longer than the limit.
    """

    vectors: Vectors
    counts: Counts
    cut: int


class Backend(Protocol):
    """A session of this process, or a server."""

    def encode(self, texts: list[str], kind: Kind) -> Encoded:
        """Vectors of different texts, prompts not yet included."""
        ...
