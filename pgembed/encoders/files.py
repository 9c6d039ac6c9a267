"""Files of other projects: which belong to a folder, what they are, what their JSON says.

Names in a folder's settings are followed only inside the folder, and so are symbolic links; the one
exception is the cache of the Hugging Face hub, whose snapshots consist of links to the blobs beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self, TypeVar

from pgembed.exc import EncoderFilesError

_NAME_BYTES = 255  # of one part of a path, on all usual file systems
_LFS_POINTER = b"version https://git-lfs.github.com/"
_PAGES = (b"<!doctype", b"<html", b"<?xml")

_LARGEST = 1 << 28  # bytes; the tokenizers of the largest vocabularies have a tenth of it
_HIGHEST = 1 << 31
_REQUIRED: Any = object()

Value = TypeVar("Value")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def shown(value: object) -> str:
    """``repr(value)``, shortened: a file may hold values of any size."""
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

    :ivar root: the folder that must contain all files.
    :ivar place: the subfolder.
    """

    root: Path
    place: str = ""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.place

    @cached_property
    def _homes(self) -> tuple[Path, ...]:
        """The folders that may contain its files."""
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
        """The path of a file, which need not exist.

        :param stated_in: the file that names it, for the error.
        :raises EncoderFilesError: the name, or a link of that name, leads out of the folder.
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
            raise EncoderFilesError(path, f"a link to {real}", needed=f"a file inside {self.root}")
        return path

    @staticmethod
    def _is_inside(name: str) -> bool:
        windows = PureWindowsPath(name)  # of which "C:x" and "C:\\x" have a drive, "\\x" a root
        parts = PurePosixPath(name).parts
        if windows.drive or windows.root or len(name) > _NAME_BYTES * 4:
            return False
        return all(is_name(part) for part in parts)

    def has(self, name: object, *, stated_in: Path | None = None) -> bool:
        """Whether the name exists, even as a link to a file that was never fetched.

        :raises EncoderFilesError: as :meth:`file`.
        """
        return os.path.lexists(self.file(name, stated_in=stated_in))


def check_file(path: Path, *, needed: str) -> int:
    """Refuse what is not a file, and what is often found in place of one; returns the size.

    :raises EncoderFilesError: nothing there, no regular file, an empty file, a pointer of Git LFS, or a
        web page.
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
    """What is at ``path`` instead of a file with content, in words; ``None`` if there is such a file."""
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


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The JSON in ``path``.

    :raises EncoderFilesError: the file is missing, not JSON, too large, or nested too deeply.
    """
    needed = "a JSON file"
    try:
        if check_file(path, needed=needed) > _LARGEST:
            raise EncoderFilesError(path, f"more than {_LARGEST} bytes", needed=needed)
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EncoderFilesError(path, error.strerror or str(error), needed=needed) from error
    except ValueError as error:
        raise EncoderFilesError(path, f"text that is not JSON ({error})", needed=needed) from error
    except RecursionError:
        raise EncoderFilesError(path, "JSON that is nested too deeply", needed=needed) from None


class JsonObject(Mapping[str, Any]):
    """The members of a JSON object; ``null`` counts as absent.

    :param path: the file that they come from.
    :param values: the object.
    :param within: the key that leads to the object, for errors.
    :raises EncoderFilesError: the value is not an object.
    """

    def __init__(self, path: Path, values: object, *, within: str = "") -> None:
        if not isinstance(values, dict):
            found = f"{within} = {shown(values)}" if within else f"JSON of type {type(values).__name__}"
            raise EncoderFilesError(path, found, needed="a JSON object")
        self.path = path
        self._values: dict[str, Any] = values
        self._within = f"{within}." if within else ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in a file."""
        return cls(path, read_json(path))

    @classmethod
    def optional(cls, path: Path) -> Self:
        """The settings in a file; empty if there is no such file."""
        return cls.read(path) if os.path.lexists(path) else cls(path, {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def wrong(self, key: str, *, needed: str) -> EncoderFilesError:
        """The error for a value that is refused."""
        return EncoderFilesError(
            self.path, f"{self._within}{key} = {shown(self._values.get(key))}", needed=needed
        )

    def _typed(self, key: str, kind: type[Value], default: Value, needed: str) -> Value:
        value = self._values.get(key)
        if value is None and default is not _REQUIRED:
            return default
        # For Python a bool is an int, for JSON it is not.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, needed=needed)
        return value

    def integer(self, key: str, default: int = _REQUIRED, *, least: int = 0, most: int = _HIGHEST) -> int:
        """A whole number from ``least`` to ``most``."""
        needed = f"a whole number from {least} to {most}"
        value = self._typed(key, int, default, needed)
        if self._values.get(key) is not None and not least <= value <= most:
            raise self.wrong(key, needed=needed)
        return value

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """A number above 0 that is finite."""
        needed = "a number above 0"
        if isinstance(self._values.get(key), int):
            return float(self.integer(key, least=1))
        value = self._typed(key, float, default, needed)
        if not 0 < value < math.inf:
            raise self.wrong(key, needed=needed)
        return value

    def flag(self, key: str, default: bool = _REQUIRED) -> bool:
        """``true`` or ``false``."""
        return self._typed(key, bool, default, "true or false")

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self._typed(key, str, default, "a string")
        if not _is_text(value):
            raise self.wrong(key, needed="a string without halves of surrogate pairs")
        return value

    def texts(self, key: str, default: list[str] = _REQUIRED) -> list[str]:
        """A list of strings."""
        value = self._typed(key, list, default, "a list of strings")
        if not all(isinstance(item, str) and _is_text(item) for item in value):
            raise self.wrong(key, needed="a list of strings")
        return value

    def expect(self, key: str, needed: object) -> None:
        """Refuse another value than ``needed``, where there is one.

        :raises EncoderFilesError: the key has another value.
        """
        if self._values.get(key) not in (None, needed):
            raise self.wrong(key, needed=repr(needed))

    def all_texts(self) -> dict[str, str]:
        """All members, which must be strings."""
        return {key: self.text(key) for key in self._values}

    def table(self, key: str) -> JsonObject:
        """An object inside this one; empty if there is none."""
        return JsonObject(self.path, self._typed(key, dict, {}, "an object"), within=self._within + key)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
