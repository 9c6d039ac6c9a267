"""What an encoder comes from: a folder on this machine, a package, the Hugging Face hub, or a server."""

from __future__ import annotations

from typing import Any, Protocol

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Encoded, Kind
from pgembed.encoders.text.tokenizer import AnyTokenizer


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
