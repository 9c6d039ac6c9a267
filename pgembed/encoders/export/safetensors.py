"""Reading safetensors files without any package: eight bytes of length, a JSON header, the data.

The format: https://github.com/huggingface/safetensors#format. What its own library refuses is refused here
too. Tensors are memory-mapped, so a model of gigabytes is never in memory as a whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.files import check_file, shown
from pgembed.exc import EncoderFilesError

_TYPES: dict[str, Any] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}
_LONGEST_HEADER = 100_000_000  # bytes, as in the format's own library
_NEEDED = "a safetensors file"


@dataclass(frozen=True)
class _Entry:
    """A tensor's line in the header; ``first`` and ``last`` count bytes from the end of the header."""

    kind: str
    shape: tuple[int, ...]
    first: int
    last: int


class SafetensorsFile(Mapping[str, npt.NDArray[Any]]):
    """One file's tensors by name; bfloat16 is widened to float32, which loses nothing.

    :raises EncoderFilesError: the file is missing, cut short or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = check_file(path, needed=_NEEDED)
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > min(size - 8, _LONGEST_HEADER):
                    raise ValueError(f"its header has {length} bytes, the file {size}")
                header = json.loads(file.read(length).decode(), object_pairs_hook=_each_once)
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            header.pop("__metadata__", None)
            self._entries = {name: _entry(name, value) for name, value in header.items()}
        except OSError as error:
            raise EncoderFilesError(path, error.strerror or str(error), needed=_NEEDED) from error
        except (ValueError, RecursionError) as error:
            raise EncoderFilesError(
                path, f"something that is not a safetensors file ({error})", needed=_NEEDED
            ) from error
        self._start = 8 + length
        end = self._start + self._gapless()
        if size != end:
            hint = ": the file was copied in part" if size < end else ""
            raise EncoderFilesError(path, f"{size} bytes", needed=f"{end} bytes{hint}")
        self._data = np.memmap(path, dtype=np.uint8, mode="r")

    def _gapless(self) -> int:
        """The bytes of all tensors, which must lie end to end."""
        end = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: (item[1].first, item[1].last)):
            if entry.first != end:
                found = f"tensor {shown(name)} at the bytes {entry.first} to {entry.last}"
                raise EncoderFilesError(
                    self.path, found, needed=f"one from byte {end}, end to end with the last"
                )
            end = entry.last
        return end

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self._entries[name]
        if entry.kind not in _TYPES:
            found = f"tensor {shown(name)} of type {shown(entry.kind)}"
            raise EncoderFilesError(self.path, found, needed=" or ".join(_TYPES))
        part = np.asarray(self._data[self._start + entry.first : self._start + entry.last])
        data: npt.NDArray[Any] = part.view(_TYPES[entry.kind]).reshape(entry.shape)
        if entry.kind == "BF16":
            widened: npt.NDArray[np.float32] = (data.astype(np.uint32) << 16).view(np.float32)
            return widened
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("its header has a name twice")
    return values


def _entry(name: str, value: Any) -> _Entry:
    """
    :raises ValueError: it describes no tensor.
    """
    try:
        kind, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, first, last]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"tensor {shown(name)} lacks dtype, shape or data_offsets") from error
    if not isinstance(kind, str) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"tensor {shown(name)} is described by {shown(value)}")
    count = math.prod(shape)
    if kind in _TYPES and count * _TYPES[kind].itemsize != last - first:
        raise ValueError(
            f"tensor {shown(name)} of type {kind} and shape {shown(shape)} has {last - first} bytes"
        )
    if first > last or len(shape) > 8 or not name.isprintable():
        raise ValueError(f"tensor {shown(name)} is described by {shown(value)}")
    return _Entry(kind, tuple(shape), first, last)
