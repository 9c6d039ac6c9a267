"""What computes vectors, and what an encoder is made from: the shapes that its files and a server share."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.tokenizing import AnyTokenizer

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


class Source(Protocol):
    """Where an encoder comes from. A source is small, immutable and can be pickled."""

    @property
    def name(self) -> str:
        """What to call the encoder while no spec has been read."""
        ...

    @property
    def label(self) -> str:
        """The source, for people."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint, where one was stated."""
        ...

    @property
    def dimensions(self) -> int | None:
        """The dimensions, where they were stated."""
        ...

    @property
    def stated(self) -> dict[str, Any]:
        """What was stated that decides vectors, dimensions apart: arguments of the encoder."""
        ...

    def early_spec(self) -> EncoderSpec | None:
        """The spec, where it can be read at once and has to be."""
        ...

    def spec(self) -> EncoderSpec:
        """The spec, compared with what was stated."""
        ...

    def tokenizer(self) -> AnyTokenizer:
        """Open the tokenizer alone."""
        ...

    def backend(self) -> Backend:
        """Open what computes the vectors."""
        ...

    def tower(self) -> Source | None:
        """The encoder that queries have for themselves, if there is one here."""
        ...
