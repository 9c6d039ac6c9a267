"""Writing a folder so that it is there as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgembed.encoders.spec import SPEC_FILE
from pgembed.exc import EncoderFilesError

_NEEDED = "a place that an encoder can be written to"


@contextmanager
def written_whole(target: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place at the end of the block.

    An encoder that was there is replaced (or, without ``overwrite``, stays and wins); any other content is
    left alone.

    :raises EncoderFilesError: ``target`` is something else than an encoder's folder.
    """
    try:
        if b"\0" in os.fsencode(target):
            raise ValueError("a NUL")
    except ValueError as error:  # a UnicodeEncodeError is one
        raise EncoderFilesError(target, f"a path with {error}", needed=_NEEDED) from error
    try:
        if (
            target.exists()
            and not (target / SPEC_FILE).is_file()
            and not (target.is_dir() and not any(target.iterdir()))
        ):
            found = "a folder with other files" if target.is_dir() else "a file"
            needed = "no folder, an empty one, or an encoder to be replaced"
            raise EncoderFilesError(target, found, needed=needed)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".export.", ignore_cleanup_errors=True
        ) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            yield fresh
            _replace(fresh, target, Path(scratch) / "old", overwrite=overwrite)
    except OSError as error:
        raise EncoderFilesError(target, str(error), needed=_NEEDED) from error


def _replace(fresh: Path, target: Path, old: Path, *, overwrite: bool) -> None:
    """Move ``fresh`` to ``target``; renames are atomic, so readers see the old folder, none, or the new."""
    while True:
        try:
            fresh.rename(target)  # an empty folder gives way
        except OSError:
            if not (target / SPEC_FILE).is_file():
                raise
        else:
            return
        if not overwrite:
            return
        with suppress(FileNotFoundError):  # another process may be replacing it as well
            target.rename(old)
