"""JSON settings read by type, with errors that name the file, the key, what was found and what is needed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pgembed.encoders.files import check_file, shown
from pgembed.exc import EncoderFilesError

_LARGEST = 1 << 28  # bytes; the tokenizers of the largest vocabularies have a tenth of it
_HIGHEST = 1 << 31
_REQUIRED: Any = object()

Value = TypeVar("Value")


def read_json(path: Path) -> Any:
    """The JSON in ``path``.

    :raises EncoderFilesError: the file is missing, something else, too large, or nested too deeply.
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


class Settings(Mapping[str, Any]):
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
        """The settings in a file; none where there is nothing of that name."""
        return cls.read(path) if os.path.lexists(path) else cls(path, {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def wrong(self, key: str, *, needed: str) -> EncoderFilesError:
        """The error for a value that cannot be taken."""
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

    def all_texts(self) -> dict[str, str]:
        """All members, which must be strings."""
        return {key: self.text(key) for key in self._values}

    def table(self, key: str) -> Settings:
        """An object inside of this one; an empty one where there is none."""
        return Settings(self.path, self._typed(key, dict, {}, "an object"), within=self._within + key)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
