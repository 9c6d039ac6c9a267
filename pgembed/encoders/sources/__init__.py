"""What an encoder comes from: a folder on this machine, a package, the Hugging Face hub, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.texts import Encoded, Kind, Text
from pgembed.encoders.text.tokenizer import AnyTokenizer


class Backend(Protocol):
    """A session of this process, or a server."""

    def encode(self, texts: Sequence[Text], kind: Kind) -> Encoded:
        """Vectors of different texts, prompts not yet included; or logits of different pairs of texts."""
        ...


class Source(Protocol):
    """Where an encoder comes from. A source is small, immutable and can be pickled."""

    @property
    def reports(self) -> bool:
        """Whether it has a spec; of some servers, only the results are known."""
        ...

    @property
    def name(self) -> str:
        """What to call the encoder before its spec is read."""
        ...

    @property
    def label(self) -> str:
        """The source, for people."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """The stated fingerprint, if any."""
        ...

    @property
    def dimensions(self) -> int | None:
        """The stated dimensions, if any."""
        ...

    @property
    def stated(self) -> dict[str, Any]:
        """The stated arguments that decide vectors, except the dimensions."""
        ...

    def early_spec(self) -> EncoderSpec | None:
        """The spec, if it has to be read when the encoder is made."""
        ...

    def spec(self) -> EncoderSpec:
        """The spec, compared with what was stated."""
        ...

    def tokenizer(self, *, whole: bool = False) -> AnyTokenizer:
        """Open the tokenizer alone; ``whole``: one that does not cut texts."""
        ...

    def backend(self) -> Backend:
        """Open what computes the vectors."""
        ...

    def tower(self) -> Source | None:
        """The separate encoder for queries, if there is one here."""
        ...
