"""``config.json`` of a model, read with errors that name the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pgembed.encoders.export.graph import ACTIVATIONS
from pgembed.exc import EncoderFilesError


def read_json(path: Path) -> Any:
    """The JSON in ``path``.

    :raises EncoderFilesError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderFilesError(path, error.strerror or str(error), needed="a JSON file") from error
    except ValueError as error:
        raise EncoderFilesError(path, f"text that is not JSON ({error})", needed="a JSON file") from error


class ModelConfig:
    """The values of ``config.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        values = read_json(path)
        if not isinstance(values, dict):
            raise EncoderFilesError(path, f"JSON of type {type(values).__name__}", needed="a JSON object")
        self.values: dict[str, Any] = values

    @property
    def model_type(self) -> str:
        """The architecture's name, such as ``"bert"``."""
        return str(self.values.get("model_type", "unknown"))

    def integer(self, key: str) -> int:
        """A whole number that must be there."""
        value = self.values.get(key)
        if not isinstance(value, int):
            raise EncoderFilesError(self.path, f"{key} = {value!r}", needed="a whole number")
        return value

    def number(self, key: str) -> float:
        """A number that must be there."""
        value = self.values.get(key)
        if not isinstance(value, int | float):
            raise EncoderFilesError(self.path, f"{key} = {value!r}", needed="a number")
        return float(value)

    def activation(self, key: str) -> str:
        """The name of an activation.

        :raises EncoderFilesError: it is not one that the graph knows.
        """
        value = self.values.get(key)
        if str(value) not in ACTIVATIONS:
            raise EncoderFilesError(self.path, f"{key} = {value!r}", needed=" or ".join(ACTIVATIONS))
        return str(value)

    def expect(self, key: str, needed: Any, *, default: Any) -> None:
        """Refuse a variant of the architecture that is not built.

        :raises EncoderFilesError: the key has another value.
        """
        value = self.values.get(key, default)
        if value != needed:
            raise EncoderFilesError(self.path, f"{key} = {value!r}", needed=repr(needed))
