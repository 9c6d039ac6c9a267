"""``pgembed split``: how a file is cut, with the tokens of its pieces."""

from __future__ import annotations

import json
from pathlib import Path

from pgembed import Encoder
from pgembed.parts import split
from tests.commands import call

ROOT = Path(__file__).parents[3]


def test_a_file_as_a_table(minilm: Encoder, minilm_folder: Path) -> None:
    file = ROOT / "docs" / "models.md"
    source = file.read_text(encoding="utf-8")
    wanted = split(source, minilm, format="markdown")
    done = call("split", str(file), "--encoder", str(minilm_folder))
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.split("│")[1:5]] for line in done.stdout.splitlines() if "│" in line
    ]
    assert rows == [
        [str(piece.number), str(piece.start), str(piece.end), str(piece.tokens)] for piece in wanted
    ]
    tokens = sum(piece.tokens for piece in wanted)
    assert done.stdout.splitlines()[-1] == (
        f"pieces: {len(wanted)}, of {len(source)} characters and {tokens} tokens"
    )


def test_standard_input_as_json(minilm: Encoder, minilm_folder: Path) -> None:
    source = "One [red]sentence[/red]. " * 40
    options = ["--max-tokens", "50", "--overlap", "10", "--context", "Title: ", "--format", "text", "--json"]
    done = call("split", "--encoder", str(minilm_folder), *options, stdin=source)
    pieces = split(source, minilm, max_tokens=50, overlap=10, context="Title: ")
    found = json.loads(done.stdout)
    assert [(row["number"], row["start"], row["end"], row["tokens"]) for row in found] == [
        (piece.number, piece.start, piece.end, piece.tokens) for piece in pieces
    ]
    assert [row["text"] for row in found] == [source[piece.start : piece.end] for piece in pieces]


def test_what_it_refuses(minilm_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    done = call("split", str(file), "--encoder", str(minilm_folder))
    assert done.returncode == 1
    assert "found the byte 0xe9 at 3, which is not UTF-8" in done.stderr
    done = call("split", "--encoder", str(minilm_folder), "--format", "rtf", stdin="text")
    assert "expected a format, one of text, markdown, html, code, got 'rtf'" in done.stderr
