"""``pgembed encode``: texts, one per line, to vectors, one per line or as a numpy file."""

from __future__ import annotations

import enum
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pgembed.cli.options import say
from pgembed.encoders import Encoder
from pgembed.encoders.text.texts import Vectors
from pgembed.exc import TextError

# Lines encoded together: enough to batch texts of similar length, few enough to stream.
_WINDOW = 1024


class Format(enum.StrEnum):
    """How vectors are written."""

    JSON = "json"
    PGVECTOR = "pgvector"
    NPY = "npy"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("encode")(encode)


def encode(
    encoder: Annotated[str, typer.Option(help="Folder of an encoder, or the name of an installed one.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of texts, one a line; standard input without any.")
    ] = None,
    queries: Annotated[bool, typer.Option("--queries", help="The texts are queries, not documents.")] = False,
    format: Annotated[
        Format, typer.Option(help="JSON arrays, pgvector's text form for SQL, or a numpy file.")
    ] = Format.JSON,
    output: Annotated[Path | None, typer.Option(help="File to write; standard output without one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or int8.")] = "auto",
) -> None:
    """Encode any number of texts as a stream, and write their vectors in the same order."""
    if format is Format.NPY and not (output and (output.is_file() or not output.exists())):
        raise typer.BadParameter("a numpy file begins with the number of its rows, so it needs --output FILE")
    if output is None and sys.stdout is None:
        raise typer.BadParameter("standard output is closed, and there is no --output")
    if not files and sys.stdin is None:
        raise typer.BadParameter("standard input is closed, and no files were named")
    path = Path(encoder) if Path(encoder).exists() else encoder
    with ExitStack() as stack:
        opened = stack.enter_context(Encoder(path, device=device, precision=precision))
        lines = _lines(files or [], stack)
        written: IO[bytes] | None = None
        partial = None
        if output is not None and output.exists() and not output.is_file():  # a pipe or a device
            written = stack.enter_context(output.open("wb"))
        elif output is not None:
            output = output.resolve()
            partial = output.with_name(f".{output.name}.partial")
            stack.callback(partial.unlink, missing_ok=True)
            written = stack.enter_context(partial.open("w+b"))
        progress = stack.enter_context(_progress(shown=output is not None or not sys.stdout.isatty()))
        task = progress.add_task(opened.name, total=None)
        sink = _NumpySink(written, opened.dimensions) if format is Format.NPY and written else None
        count = 0
        while window := list(itertools.islice(lines, _WINDOW)):
            vectors = opened.encode_queries(window) if queries else opened.encode_documents(window)
            if sink is not None:
                sink.write(vectors)
            else:
                _write_lines(vectors, format, written)
            count += len(window)
            progress.update(task, completed=count)
        if sink is not None:
            sink.finish()
        if written is not None and partial is not None and output is not None:
            written.close()
            partial.replace(output)
        if opened.cut:
            say(f"{opened.cut} texts were cut at {opened.max_tokens} tokens", err=True)


def _lines(files: Sequence[Path], stack: ExitStack) -> Iterator[str]:
    """The lines of all files without their ends, decoded as UTF-8 whatever the locale says."""
    streams: Iterable[IO[bytes]] = (stack.enter_context(path.open("rb")) for path in files)
    position = itertools.count()
    for stream in streams if files else (sys.stdin.buffer,):
        for line, number in zip(stream, position, strict=False):
            try:
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise TextError(f"found the byte {byte:#x}, which is not UTF-8", position=number) from None


def _write_lines(vectors: Vectors, format: Format, file: IO[bytes] | None) -> None:
    """One line per vector, with the nine digits that restore the same float32."""
    comma = "," if format is Format.PGVECTOR else ", "
    pattern = f"[{comma.join(['%.9g'] * vectors.shape[1])}]\n"
    text = "".join(pattern % tuple(vector) for vector in vectors.tolist())
    stream = sys.stdout.buffer if file is None else file
    stream.write(text.encode())
    stream.flush()


class _NumpySink:
    """A ``.npy`` file whose number of rows is known at the end.

    numpy leaves room in the header for the first axis to grow, so the header can be written again in place.
    """

    def __init__(self, file: IO[bytes], dimensions: int) -> None:
        self._file = file
        self._dimensions = dimensions
        self._rows = 0
        self._header()

    def write(self, vectors: Vectors) -> None:
        """Append rows."""
        self._file.write(vectors.tobytes())
        self._rows += len(vectors)

    def finish(self) -> None:
        """Write the number of rows."""
        self._file.seek(0)
        self._header()

    def _header(self) -> None:
        shape = (self._rows, self._dimensions)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def _progress(*, shown: bool) -> Progress:
    """A counter on standard error, when that is a terminal and the vectors go elsewhere."""
    console = Console(stderr=True)
    console.quiet = not (shown and console.is_terminal)  # a bar only disabled ends a line in rich 13
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=console.quiet, transient=True)
