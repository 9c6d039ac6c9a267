"""Late chunking of parts: the encoder reads the whole text, and averages the vectors of each part's tokens.

What is to be encoded is then a :class:`Within`, the text of a part that knows where it stands. It goes
through queues and bisections as any other text, and :func:`encode` reads each source once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from pgembed.columns import TextEncoder
from pgembed.encoders import Encoder
from pgembed.encoders.spans import VERSION
from pgembed.exc import DeclarationError

#: What says that parts are made so, with the version of how.
LATE = f" late {VERSION}"


@runtime_checkable
class SpanEncoder(Protocol):
    """An encoder that reads whole texts for the vectors of their parts, as :class:`pgembed.Encoder` does."""

    def encode_spans(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> Any:
        """For each text an array of vectors, one for each of its spans."""
        ...


class Within(str):
    """The text of a part that is encoded within its source.

    :ivar source: all of the text.
    :ivar span: where the part starts and ends in it.
    """

    source: str
    span: tuple[int, int]

    @classmethod
    def of(cls, source: str, start: int, end: int) -> Within:
        """The part of ``source``."""
        made = cls(source[start:end])
        made.source, made.span = source, (start, end)
        return made


def check(encoder: TextEncoder, context: str | None) -> None:
    """
    :raises DeclarationError: the encoder does not read texts for the vectors of their parts, or each part
        would have a context of its own.
    :raises EncoderOptionError: the encoder pools otherwise, or was exported by an older pgembed.
    """
    if not isinstance(encoder, SpanEncoder):
        raise DeclarationError(
            f"encoder={encoder!r} has no encode_spans, which pooling='late' needs; expected a pgembed.Encoder"
        )
    if context is not None:
        raise DeclarationError(
            f"context={context!r} with pooling='late', by which each part is read within the whole text; "
            "expected one of the two"
        )
    if isinstance(encoder, Encoder):
        encoder.check_spans()


def encode(encoder: TextEncoder, texts: Sequence[str]) -> Any:
    """The encoder's answer to texts, of which some may be within others."""
    if not any(isinstance(text, Within) for text in texts):
        return encoder.encode_documents(texts)
    assert isinstance(encoder, SpanEncoder), "checked when it was declared"
    vectors = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
    by_source: dict[str, list[int]] = defaultdict(list)
    plain = []
    for place, text in enumerate(texts):
        if isinstance(text, Within):
            by_source[text.source].append(place)
        else:
            plain.append(place)
    spans = [[cast("Within", texts[place]).span for place in places] for places in by_source.values()]
    for places, found in zip(by_source.values(), encoder.encode_spans(list(by_source), spans), strict=True):
        vectors[places] = found
    if plain:
        vectors[plain] = encoder.encode_documents([texts[place] for place in plain])
    return vectors
