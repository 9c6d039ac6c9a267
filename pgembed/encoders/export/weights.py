"""A model's weights by the names that its architecture uses, whatever prefix they were saved under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.export.safetensors import SafetensorsFile
from pgembed.exc import EncoderFilesError

Array = npt.NDArray[np.float32]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def has_weights(folder: Path) -> bool:
    """Whether a model folder has safetensors."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that the index names.

    :raises EncoderFilesError: there are none.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / shard for shard in shards]
    older = next((path.name for path in sorted(folder.glob("*.bin"))), None)
    raise EncoderFilesError(
        folder,
        f"no {SINGLE_FILE}" + (f", but {older}" if older else ""),
        needed=f"the weights as safetensors ({SINGLE_FILE}); most models have them in a newer revision",
    )


class Weights:
    """Weights read by name as float32.

    :param files: safetensors files.
    :param prefixes: prefixes that names may carry (``"bert."``); the one that fits is taken.
    :param anchors: names of the embedding table; the one that is there gives the prefix.
    """

    def __init__(
        self, files: Sequence[Path], *, prefixes: Sequence[str] = (), anchors: Sequence[str] = ()
    ) -> None:
        self._tensors: dict[str, SafetensorsFile] = {
            name: file for path in files for file in [SafetensorsFile(path)] for name in file
        }
        self._files = list(files)
        pairs = [(prefix, anchor) for anchor in anchors for prefix in ("", *prefixes)]
        fitting = [pair for pair in pairs if "".join(pair) in self._tensors]
        if anchors and not fitting:
            found = f"tensors such as {', '.join(sorted(self._tensors)[:3])}"
            raise EncoderFilesError(files[0], found, needed=f"a tensor {' or '.join(map(repr, anchors))}")
        self._prefix, self.anchor = fitting[0] if fitting else ("", "")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def get(self, name: str) -> Array | None:
        """The tensor, or ``None``."""
        return self[name] if self._prefix + name in self._tensors else None

    def __getitem__(self, name: str) -> Array:
        full = self._prefix + name
        if full not in self._tensors:
            raise EncoderFilesError(
                self._files[0], f"no tensor {full!r}", needed="all weights that its config.json implies"
            )
        tensor: npt.NDArray[Any] = self._tensors[full][full]
        return np.ascontiguousarray(tensor, dtype=np.float32)


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
