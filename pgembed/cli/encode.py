"""``pgembed encode``: texts on stdin, one a line, to vectors on stdout, one a line."""

from __future__ import annotations

import enum
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from pgembed.encoders import Encoder
from pgembed.encoders.runtime import Vectors
from pgembed.exc import TextError

# Lines encoded together: enough to find texts of like length among them, little enough to flow.
_WINDOW = 1024


class Format(enum.StrEnum):
    """How a vector is written."""

    JSON = "json"
    PGVECTOR = "pgvector"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("encode")(encode)


def encode(
    encoder: Annotated[str, typer.Option(help="Folder of an encoder, or the name of an installed one.")],
    queries: Annotated[bool, typer.Option("--queries", help="The texts are queries, not documents.")] = False,
    format: Annotated[
        Format, typer.Option(help="JSON arrays, or pgvector's text form for SQL.")
    ] = Format.JSON,
) -> None:
    """Encode texts from stdin, one a line, and write their vectors to stdout, one a line."""
    with Encoder(Path(encoder) if Path(encoder).exists() else encoder) as opened:
        lines = _decoded(sys.stdin.buffer)
        while window := list(itertools.islice(lines, _WINDOW)):
            vectors = opened.encode_queries(window) if queries else opened.encode_documents(window)
            sys.stdout.writelines(_rendered(vectors, format))
            sys.stdout.flush()


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends, decoded as UTF-8 whatever the locale says."""
    for position, line in enumerate(lines):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise TextError(
                f"found {error.object[error.start]:#x}, which is no UTF-8", position=position
            ) from None


def _rendered(vectors: Vectors, format: Format) -> Iterator[str]:
    """One line a vector; the shortest digits that give back the same float32."""
    for vector in vectors:
        numbers = [float(str(value)) for value in vector]
        separators = (",", ":") if format is Format.PGVECTOR else None
        yield json.dumps(numbers, separators=separators) + "\n"
