"""A model's weights by the names that its architecture uses, whatever prefix they were saved under."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.export.safetensors import SafetensorsFile
from pgembed.encoders.files import Folder, Settings, shown, stand_in
from pgembed.exc import EncoderFilesError

Array = npt.NDArray[np.float32]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def has_weights(folder: Folder) -> bool:
    """Whether a model folder has safetensors."""
    return any(folder.has(name) for name in (SINGLE_FILE, INDEX_FILE))


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights names.

    :raises EncoderFilesError: it names none.
    """
    settings = Settings.read(index)
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


class Weights:
    """Weights read by name as float32.

    :param files: safetensors files.
    :param prefixes: prefixes that names may carry (``"bert."``); the one that fits is taken.
    :param anchors: names of the embedding table; the one that is there gives the prefix.
    :raises EncoderFilesError: they are damaged, or hold other tensors.
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
        :raises EncoderFilesError: it is not there, has another shape, or holds none or infinite numbers.
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


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
