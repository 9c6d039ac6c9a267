"""Files of folders that somebody else wrote: which of them belong to the folder, and what they really are.

Names that stand in a folder's settings are followed only inside the folder, and so are symbolic links; the
one exception is the cache of the Hugging Face hub, whose snapshots consist of links to the blobs beside them.
"""

from __future__ import annotations

import os
import reprlib
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from pgembed.exc import EncoderFilesError

_NAME_BYTES = 255  # of one part of a path, on all usual file systems
_LFS_POINTER = b"version https://git-lfs.github.com/"
_PAGES = (b"<!doctype", b"<html", b"<?xml")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def shown(value: object) -> str:
    """``repr(value)``, shortened: what a file holds may be of any size."""
    return _short.repr(value)


def is_name(name: object) -> bool:
    """Whether ``name`` can name a file or folder on every system: no path, and nothing invisible in it."""
    return (
        isinstance(name, str)
        and name.isprintable()  # no control characters, no lone surrogates
        and not {"/", "\\", ":"}.intersection(name)
        and name not in ("", ".", "..")
        and len(name.encode()) <= _NAME_BYTES
    )


@dataclass(frozen=True)
class Folder:
    """A folder whose files are read by name.

    :ivar root: the folder that all files must lie in.
    :ivar place: the subfolder of it that is meant.
    """

    root: Path
    place: str = ""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.place

    @cached_property
    def _homes(self) -> tuple[Path, ...]:
        """The folders that its files may lie in."""
        real = self.root.resolve()
        if real.parent.name == "snapshots" and real.parents[1].name.startswith("models--"):
            return real, real.parents[1] / "blobs"
        return (real,)

    def subfolder(self, place: object, *, stated_in: Path) -> Folder:
        """The subfolder that a file names; ``""`` is the folder itself.

        :raises EncoderFilesError: the name leads out of the folder.
        """
        self.file(place, stated_in=stated_in)
        return Folder(self.root, str(PurePosixPath(self.place, str(place))))

    def file(self, name: object, *, stated_in: Path | None = None) -> Path:
        """The path of a file, which need not be there.

        :param stated_in: the file that names it, for the error.
        :raises EncoderFilesError: the name, or a link in its place, leads out of the folder.
        """
        needed = f"names of files in {self.root}, separated by /"
        if not isinstance(name, str) or (name and not self._is_inside(name)):
            raise EncoderFilesError(stated_in or self.path, f"the name {shown(name)}", needed=needed)
        path = self.path / name
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            raise EncoderFilesError(path, f"a link that leads nowhere ({error})", needed="a file") from error
        if not any(real.is_relative_to(home) for home in self._homes):
            raise EncoderFilesError(path, f"a link to {real}", needed=f"a file inside of {self.root}")
        return path

    @staticmethod
    def _is_inside(name: str) -> bool:
        windows = PureWindowsPath(name)  # of which "C:x" and "C:\\x" have a drive, "\\x" a root
        parts = PurePosixPath(name).parts
        if windows.drive or windows.root or len(name) > _NAME_BYTES * 4:
            return False
        return all(is_name(part) for part in parts)

    def has(self, name: object, *, stated_in: Path | None = None) -> bool:
        """Whether there is something of that name, even a link to what was never fetched.

        :raises EncoderFilesError: as :meth:`file`.
        """
        return os.path.lexists(self.file(name, stated_in=stated_in))


def check_file(path: Path, *, needed: str) -> int:
    """Refuse what is not a file, and what often lies in a file's place instead of it; returns the size.

    :raises EncoderFilesError: nothing there, something else than a file, an empty file, a pointer of Git LFS,
        or a web page.
    """
    found = stand_in(path)
    if found is None:
        return path.stat().st_size
    needed = f"{needed}: download it again"
    if found.startswith("a pointer"):
        needed = (
            "the file that it points to: `git lfs pull` in that folder fetches it (after `git lfs install`)"
        )
    raise EncoderFilesError(path, found, needed=needed)


def stand_in(path: Path) -> str | None:
    """What lies at ``path`` in the place of a file with content, in words; ``None`` if one is there."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "a folder" if stat.S_ISDIR(status.st_mode) else "something that is not a file"
        with path.open("rb") as file:
            head = file.read(256)
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the path
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    if not head:
        return "an empty file"
    if head.startswith(_LFS_POINTER):
        return "a pointer of Git LFS"
    if head.lstrip()[:9].lower().startswith(_PAGES):
        return "a web page"
    return None
