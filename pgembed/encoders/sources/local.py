"""Encoders on this machine: where they are, and their files as the source of an encoder.

An encoder is found by path, or by name in the folders of ``PGEMBED_ENCODERS``; never relative to the working
folder.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import platformdirs

from pgembed.encoders import forks
from pgembed.encoders.files import is_name
from pgembed.encoders.onnx import device as devices
from pgembed.encoders.onnx.graph_files import MODEL_FILE, QUERY_FOLDER, WEIGHTS_FILE
from pgembed.encoders.onnx.runtime import OnnxRuntime
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.text.pair_tokenizer import tokenizer_of
from pgembed.encoders.text.tokenizer import AnyTokenizer
from pgembed.exc import (
    EncoderFilesError,
    EncoderNotFoundError,
    EncoderOptionError,
    FingerprintMismatchError,
)

VARIABLE = "PGEMBED_ENCODERS"
PRECISIONS = ("auto", "fp32", "fp16", "int8")


def folders() -> tuple[Path, ...]:
    """The folders that hold encoders by name: those of ``PGEMBED_ENCODERS``, then the user's data folder."""
    listed = (part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip())
    return *(Path(part).expanduser().absolute() for part in listed), default_folder()


def default_folder() -> Path:
    """The folder of encoders that belongs to the user."""
    return platformdirs.user_data_path("pgembed") / "encoders"


def target(name: str, into: Path | None) -> Path:
    """The folder to put an encoder into: below ``into``, or the first folder of encoders."""
    return (folders()[0] if into is None else into.absolute()) / name


def installed(folder: Path) -> EncoderSpec | None:
    """The spec of the encoder in ``folder``; ``None`` where there is none that can be read."""
    with suppress(EncoderFilesError):
        if (folder / SPEC_FILE).is_file():
            return EncoderSpec.load(folder / SPEC_FILE)
    return None


def as_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The absolute path that ``name_or_path`` means, or ``None`` when it is a name.

    A string is a path when it holds a path separator.

    :raises EncoderNotFoundError: it begins with the home of a user who does not exist.
    """
    if isinstance(name_or_path, str):
        separators = {os.sep, "/"} | ({os.altsep} if os.altsep else set())
        if not any(separator in name_or_path for separator in separators):
            return None
    try:
        return Path(name_or_path).expanduser().absolute()
    except RuntimeError as error:
        raise EncoderNotFoundError(str(name_or_path), (), hint=f"{error}") from error


def find(name: str) -> Path:
    """The folder of the encoder called ``name``.

    :raises EncoderNotFoundError: no folder has it, or it is not a name.
    """
    searched = folders()
    if not is_name(name):
        hint = "That is not the name of an encoder: names have no separators and no invisible characters"
        raise EncoderNotFoundError(name, searched, hint=hint)
    for folder in searched:
        if (folder / name / SPEC_FILE).is_file():
            return folder / name
    hint = (
        f"Export or copy it there, set {VARIABLE} to the folder that holds it, or give a path "
        f"(./{name} is one, {name} is a name)"
    )
    raise EncoderNotFoundError(name, searched, hint=hint)


def spec_file(path: Path, *, given: str = "") -> Path:
    """The spec at ``path``: the file itself, or the one inside the folder.

    :param given: what the user wrote: perhaps the name of a model on the hub.
    :raises EncoderNotFoundError: there is neither.
    """
    with suppress(OSError, ValueError):  # names that no file system takes; newer Pythons return False
        if path.is_file():
            return path
        if (path / SPEC_FILE).is_file():
            return path / SPEC_FILE
    hint = f"A folder needs the file {SPEC_FILE} in it: `pgembed export MODEL_DIR OUT_DIR` writes one"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", given) and not os.path.exists(path):
        name = given.partition("/")[2]
        hint = (
            f"If {given} is a model of the Hugging Face hub: `pgembed pull {given}`, then Encoder({name!r})"
        )
    raise EncoderNotFoundError(str(path), [path], hint=hint)


def check_kind(spec: EncoderSpec, given: str, *, pairs: bool) -> None:
    """
    :raises EncoderOptionError: the spec is one of an encoder of texts instead of pairs, or the reverse.
    """
    if bool(spec.labels) != pairs:
        kinds = ("encodes texts", "scores pairs of texts")
        right = "Reranker" if spec.labels else "Encoder"
        needed = f"a model that {kinds[pairs]}; this one {kinds[not pairs]}: open it with {right}(...)"
        raise EncoderOptionError("name_or_path", given, needed=needed)


@dataclass(frozen=True)
class Local:
    """A folder or a spec, by path or by name.

    :ivar given: what the user wrote.
    :ivar path: its path, ``None`` for a name.
    :ivar fingerprint: the fingerprint that was stated.
    :ivar options: values that replace those of the spec, unless they are ``None``.
    :ivar device: as of :class:`~pgembed.encoders.Encoder`; ``precision`` and ``threads`` too.
    :ivar pairs: whether it scores pairs of texts.
    """

    given: str
    path: Path | None
    fingerprint: str | None
    options: dict[str, Any]
    device: str
    precision: str
    threads: int | None
    pairs: bool = False
    reports: ClassVar[bool] = True

    def __post_init__(self) -> None:
        devices.check_name(self.device)
        if self.precision not in PRECISIONS:
            raise EncoderOptionError("precision", self.precision, needed=" or ".join(PRECISIONS))
        if self.threads is not None and self.threads < 1:
            raise EncoderOptionError("threads", self.threads, needed="1 or more")

    @property
    def name(self) -> str:
        """The name that was given, or that of the folder."""
        if self.path is None:
            return self.given
        return self.path.parent.name if self.path.name == SPEC_FILE else self.path.name

    @property
    def label(self) -> str:
        """The path or the name, quoted."""
        return repr(self.name if self.path is None else str(self.path))

    @property
    def dimensions(self) -> int | None:
        """The stated dimensions."""
        stated: int | None = self.options["dimensions"]
        return stated

    @property
    def stated(self) -> dict[str, Any]:
        """The other options that are not ``None``."""
        return {
            name: value for name, value in self.options.items() if name != "dimensions" and value is not None
        }

    def early_spec(self) -> EncoderSpec | None:
        """The spec, unless fingerprint and dimensions are stated."""
        return self.spec() if self.fingerprint is None or self.dimensions is None else None

    def spec(self) -> EncoderSpec:
        """Find and read the spec, and put the options into it."""
        return self._found()[1]

    def tokenizer(self, *, whole: bool = False) -> AnyTokenizer:
        """Open the tokenizer alone; ``whole``: one that does not cut texts."""
        with forks.opening():
            return tokenizer_of(*self._with_weights(), whole=whole)

    def backend(self) -> OnnxRuntime:
        """Open tokenizer and session."""
        folder, spec = self._with_weights()
        with forks.opening():
            return OnnxRuntime(
                folder, spec, device=self.device, precision=self.precision, threads=self.threads
            )

    def tower(self) -> Local | None:
        """The encoder for queries inside this one's folder."""
        if not self.spec().query_tower:
            return None
        folder = self._with_weights()[0] / QUERY_FOLDER
        spec = EncoderSpec.load(folder / SPEC_FILE)
        if spec.query_tower:
            raise EncoderFilesError(
                folder, "an encoder for queries that has one of its own", needed="one without"
            )
        if spec.query_fingerprint != self.spec().query_tower:
            raise FingerprintMismatchError(
                spec.query_fingerprint, self.spec().query_tower, where=f"the encoder for queries in {folder}"
            )
        options = self.options | {"document_prompt": None}
        return replace(self, given=str(folder), path=folder, fingerprint=None, options=options)

    def _found(self) -> tuple[Path, EncoderSpec]:
        file = spec_file(self.path or find(self.name), given=self.given)
        spec = EncoderSpec.load(file)
        check_kind(spec, self.given, pairs=self.pairs)
        spec = spec.replace(**self.options)
        if self.fingerprint is not None and spec.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                spec.fingerprint, self.fingerprint, where=f"the encoder in {file.parent}"
            )
        return file.parent, spec

    def _with_weights(self) -> tuple[Path, EncoderSpec]:
        """Folder and spec; for a spec without weights, the folder that is found by its name."""
        folder, spec = self._found()
        if any((folder / name).exists() for name in (MODEL_FILE, WEIGHTS_FILE)):
            return folder, spec
        try:
            found = find(spec.name)
        except EncoderNotFoundError as error:
            hint = f"{folder} holds only the spec of the encoder; its weights are looked up by its name"
            raise EncoderNotFoundError(spec.name, [folder, *error.searched], hint=hint) from None
        other = EncoderSpec.load(spec_file(found)).replace(**self.options)
        if other.fingerprint != spec.fingerprint:
            raise FingerprintMismatchError(
                other.fingerprint, spec.fingerprint, where=f"the encoder in {found}"
            )
        return found, spec
