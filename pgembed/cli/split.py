"""``pgembed split``: how a long text is cut for an encoder."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pgembed.cli.options import AsJson, open_encoder, print_table, say
from pgembed.exc import TextError
from pgembed.parts import FORMATS, split

_FORMATS = {
    "markdown": re.compile(r"\.(md|markdown)"),
    "html": re.compile(r"\.x?html?"),
    "code": re.compile(r"\.(pyi?|[jt]sx?|java|kt|swift|scala|go|rs|c|h|cc|cpp|hpp|cs|rb|php|sql|sh)"),
}
_SHOWN = 60


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("split")(cut)


def cut(
    encoder: Annotated[str, typer.Option(help="Folder of an encoder, or the name of an installed one.")],
    file: Annotated[
        Path | None, typer.Argument(help="A text in UTF-8; standard input without one.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a piece; the encoder's limit without it.", show_default=False),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Tokens that a piece repeats of the one before.")] = 0,
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(FORMATS)}; that of the file's name without it.", show_default=False),
    ] = None,
    context: Annotated[str, typer.Option(help="Put before each piece; {heading} is the one above it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show how a text is cut into pieces that the encoder reads whole, with their tokens."""
    if file is None and sys.stdin is None:
        raise typer.BadParameter("standard input is closed, and no file was named")
    content = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise TextError(
            f"found the byte {content[error.start]:#x} at {error.start}, which is not UTF-8", position=0
        ) from None
    suffix = "" if file is None else file.suffix.lower()
    named = (known for known, pattern in _FORMATS.items() if pattern.fullmatch(suffix))
    with open_encoder(encoder) as opened:
        pieces = split(
            text,
            opened,
            max_tokens=max_tokens,
            overlap=overlap,
            format=format or next(named, "text"),
            context=context,
        )
    texts = [text[piece.start : piece.end] for piece in pieces]
    if as_json:
        rows = [asdict(piece) | {"text": inner} for piece, inner in zip(pieces, texts, strict=True)]
        say(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    table = Table("number", "start", "end", "tokens", "text", title_justify="left")
    for piece, inner in zip(pieces, texts, strict=True):
        words = " ".join(inner[: 4 * _SHOWN].split())
        shown = words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
        numbers = (piece.number, piece.start, piece.end, piece.tokens)
        table.add_row(*map(str, numbers), escape(shown))
    print_table(table)
    tokens = sum(piece.tokens for piece in pieces)
    say(f"{len(pieces)} pieces, {len(text)} characters, {tokens} tokens")
