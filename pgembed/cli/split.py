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
from sqlalchemy import Text, cast, select

from pgembed.cli.options import AsJson, connect, open_encoder, print_table, say
from pgembed.database.install import require_installed
from pgembed.exc import NotInstalledError, TextError
from pgembed.filling.targets import Refused, find_targets
from pgembed.parts import FORMATS, PartsTable, Piece, TokenCounter, split

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
    file: Annotated[
        Path | None, typer.Argument(help="A text in UTF-8; standard input without one.", show_default=False)
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Folder of an encoder, or the name of an installed one.", show_default=False),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            help="Instead of a file, the row of --table with this key, as its embedding_parts cut it: 7, "
            'or ["de", 7] for a key of several columns.',
            show_default=False,
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="The table of the row, as SQL writes it.")] = None,
    column: Annotated[str, typer.Option(help="The attribute of its parts.")] = "parts",
    url: Annotated[str, typer.Option(envvar="PGEMBED_URL", help="The database of the row.")] = "",
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
    if row is not None:
        if table is None or not url:
            raise typer.BadParameter("a row needs --table and --url", param_hint="--row")
        _show(*_of_row(url, table, column, row), as_json=as_json)
        return
    if encoder is None:
        raise typer.BadParameter("expected an encoder, or a row of a database", param_hint="--encoder")
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
    _show(text, pieces, as_json=as_json)


def _of_row(url: str, table: str, column: str, key: str) -> tuple[str, list[Piece]]:
    """The text of a row, and its pieces by the settings that its parts are registered with."""
    with connect(url) as connection:
        require_installed(connection)
        (target,) = find_targets(connection, table=table, column_name=column)
        if isinstance(target, Refused):
            raise target.error
        bound = target.embedding
        if not isinstance(bound, PartsTable):
            raise NotInstalledError(f"{target} is a column, expected the attribute of parts in --column")
        primary = list(bound.table.primary_key.columns)
        try:
            given = json.loads(key) if key.startswith("[") else [key]
        except ValueError as error:
            raise typer.BadParameter(f"found no JSON: {error}", param_hint="--row") from error
        if len(given) != len(primary):
            wanted = f"found {len(given)} values, expected {len(primary)}"
            raise typer.BadParameter(wanted, param_hint="--row")
        same = (cast(mine, Text) == str(value) for mine, value in zip(primary, given, strict=True))
        texts = connection.execute(select(*bound.sources).where(*same)).one_or_none()
        if texts is None:
            raise NotInstalledError(f"{table} has no row {key}")
    declaration, body = bound.declaration, texts[0] or ""
    encoder = declaration.encoder
    assert isinstance(encoder, TokenCounter), "checked when it was declared"
    values = dict(zip(declaration.sources[1:], texts[1:], strict=True))
    return body, declaration.splitting.pieces(body, encoder, values)


def _show(text: str, pieces: list[Piece], *, as_json: bool) -> None:
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
    say(f"pieces: {len(pieces)}, of {len(text)} characters and {tokens} tokens")
