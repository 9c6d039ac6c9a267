"""A model's weights: safetensors files, read by the names that its architecture uses.

Safetensors are eight bytes of length, a JSON header, the data
(https://github.com/huggingface/safetensors#format). What the format's own library refuses is refused here
too. Tensors are memory-mapped, so a model of gigabytes is never in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.files import Folder, JsonObject, check_file, file_digest, shown, stand_in
from pgembed.exc import EncoderFilesError

Array = npt.NDArray[np.float32]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
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


def has_weights(folder: Folder) -> bool:
    """Whether a model folder has safetensors."""
    return any(folder.has(name) for name in (SINGLE_FILE, INDEX_FILE))


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights names.

    :raises EncoderFilesError: it names no files.
    """
    settings = JsonObject.read(index)
    weight_map = settings.table("weight_map").all_texts()
    if not weight_map:
        raise settings.wrong("weight_map", needed="the file of each tensor")
    return sorted(set(weight_map.values()))


def weight_files(folder: Folder) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that the index names.

    :raises EncoderFilesError: there are none, or the index leads out of the folder.
    """
    if folder.has(SINGLE_FILE):
        return [folder.file(SINGLE_FILE)]
    if folder.has(INDEX_FILE):
        index = folder.file(INDEX_FILE)
        return [folder.file(shard, stated_in=index) for shard in shards(index)]
    older = next(iter(sorted(folder.path.glob("*.bin"))), None)
    found = f"no {SINGLE_FILE}"
    if older is not None:
        instead = stand_in(older)
        found += f", but {older.name}" + (f", {instead}" if instead else "")
    raise EncoderFilesError(
        folder.path,
        found,
        needed=f"the weights as safetensors ({SINGLE_FILE}); most models have them in a newer revision",
    )


@dataclass(frozen=True)
class _Entry:
    """A tensor's line in the header; ``first`` and ``last`` count bytes from the end of the header."""

    kind: str
    shape: tuple[int, ...]
    first: int
    last: int


class SafetensorsFile(Mapping[str, npt.NDArray[Any]]):
    """One file's tensors by name; bfloat16 is widened to float32, which loses nothing.

    :raises EncoderFilesError: the file is missing, cut short or not a safetensors file.
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
    :raises ValueError: it does not describe a tensor.
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


class Weights:
    """Weights read by name as float32.

    :param files: safetensors files.
    :param prefixes: prefixes that names may carry (``"bert."``); the one that fits is used.
    :param anchors: names of the embedding table; the one that is found tells the prefix.
    :raises EncoderFilesError: they are damaged, or contain other tensors.
    """

    def __init__(
        self, files: Sequence[Path], *, prefixes: Sequence[str] = (), anchors: Sequence[str] = ()
    ) -> None:
        self._tensors: dict[str, SafetensorsFile] = {}
        for path in files:
            file = SafetensorsFile(path)
            twice = next(iter(self._tensors.keys() & file.keys()), None)
            if twice is not None:
                found = f"tensor {shown(twice)}, which {self._tensors[twice].path.name} has as well"
                raise EncoderFilesError(path, found, needed="each tensor in one file")
            self._tensors.update(dict.fromkeys(file, file))
        self.files = list(files)
        pairs = [(prefix, anchor) for anchor in anchors for prefix in ("", *prefixes)]
        fitting = [pair for pair in pairs if "".join(pair) in self._tensors]
        if anchors and not fitting:
            listed = ", ".join(shown(name) for name in sorted(self._tensors)[:3])
            found = f"tensors such as {listed}" if listed else "no tensors"
            raise EncoderFilesError(
                self.files[0], found, needed=f"a tensor {' or '.join(map(repr, anchors))}"
            )
        self._prefix, self.anchor = fitting[0] if fitting else ("", "")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str, *sizes: int | None) -> Array | None:
        """As :meth:`take`, or ``None`` where there is no such tensor."""
        return self.take(name, *sizes) if name in self else None

    def take(self, name: str, *sizes: int | None, kinds: str = "f") -> Array:
        """The tensor of that name.

        :param sizes: the shape that it must have; ``None`` for any size.
        :param kinds: numpy's letters for the kinds of numbers that it may hold; ``f`` for floats.
        :raises EncoderFilesError: it is missing, has another shape, or contains NaN or infinity.
        """
        tensor = np.ascontiguousarray(self._checked(name, sizes, kinds), dtype=np.float32)
        if not np.isfinite(tensor).all():
            full = self._prefix + name
            found = f"tensor {full!r} with values that are not finite"
            raise EncoderFilesError(self._tensors[full].path, found, needed="numbers")
        return tensor

    def numbers(self, name: str, *sizes: int | None) -> npt.NDArray[np.int64]:
        """A tensor of whole numbers."""
        return np.ascontiguousarray(self._checked(name, sizes, "iu"), dtype=np.int64)

    def _checked(self, name: str, sizes: Sequence[int | None], kinds: str) -> npt.NDArray[Any]:
        full = self._prefix + name
        if full not in self._tensors:
            raise EncoderFilesError(
                self.files[0], f"no tensor {full!r}", needed="all weights that its config.json implies"
            )
        file = self._tensors[full]
        tensor = file[full]
        fits = len(tensor.shape) == len(sizes) and all(
            size in (None, found) for size, found in zip(sizes, tensor.shape, strict=True)
        )
        if not fits or not tensor.size:
            needed = f"({', '.join('any' if size is None else str(size) for size in sizes)})"
            found = f"tensor {full!r} of shape {tensor.shape}"
            raise EncoderFilesError(
                file.path, found, needed=f"{needed}, which config.json and the other weights imply"
            )
        if tensor.dtype.kind not in kinds:
            found = f"tensor {full!r} of type {tensor.dtype}"
            raise EncoderFilesError(file.path, found, needed="whole numbers" if kinds == "iu" else "floats")
        return tensor


def digest(files: Sequence[Path]) -> str:
    """SHA-256 (hex) of one file; of several, that of their names and digests."""
    digests = [file_digest(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    listed = "".join(f"{path.name}:{value}\n" for path, value in zip(files, digests, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()
