"""Reading safetensors files without any package: eight bytes of length, a JSON header, the data.

The format: https://github.com/huggingface/safetensors#format. Tensors are memory-mapped, so a model of
gigabytes is never in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


class SafetensorsFile(Mapping[str, npt.NDArray[Any]]):
    """One file's tensors by name; bfloat16 is widened to float32, which loses nothing.

    :raises EncoderFilesError: the file is missing, cut short or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._entries: dict[str, tuple[str, list[int], int, int]] = {
                name: (entry["dtype"], entry["shape"], *entry["data_offsets"])
                for name, entry in header.items()
            }
        except OSError as error:
            raise EncoderFilesError(
                path, error.strerror or str(error), needed="a safetensors file"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EncoderFilesError(
                path, f"no safetensors file ({error})", needed="a safetensors file"
            ) from error
        self._start = 8 + length
        end = self._start + max((entry[3] for entry in self._entries.values()), default=0)
        if size < end:
            raise EncoderFilesError(path, f"{size} bytes", needed=f"{end} bytes: the file was copied in part")
        self._data = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        kind, shape, first, last = self._entries[name]
        if kind not in _TYPES:
            raise EncoderFilesError(self.path, f"tensor {name!r} of type {kind}", needed=" or ".join(_TYPES))
        data: npt.NDArray[Any] = (
            np.asarray(self._data[self._start + first : self._start + last]).view(_TYPES[kind]).reshape(shape)
        )
        if kind == "BF16":
            widened: npt.NDArray[np.float32] = (data.astype(np.uint32) << 16).view(np.float32)
            return widened
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
