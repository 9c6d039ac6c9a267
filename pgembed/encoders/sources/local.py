"""An encoder's files as its source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgembed.encoders import forks
from pgembed.encoders.onnx.graph_files import MODEL_FILE, QUERY_FOLDER, WEIGHTS_FILE
from pgembed.encoders.onnx.runtime import OnnxRuntime
from pgembed.encoders.sources import lookup
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.text.tokenizing import AnyTokenizer, tokenizer_of
from pgembed.exc import EncoderFilesError, EncoderNotFoundError, FingerprintMismatchError


@dataclass(frozen=True)
class Local:
    """A folder or a spec, by path or by name.

    :ivar given: what the user wrote.
    :ivar path: the path it means, ``None`` for a name.
    :ivar fingerprint: the fingerprint that was stated.
    :ivar options: values that replace those of the spec, unless they are ``None``.
    :ivar device: as of :class:`~pgembed.encoders.Encoder`; ``precision`` and ``threads`` too.
    """

    given: str
    path: Path | None
    fingerprint: str | None
    options: dict[str, Any]
    device: str
    precision: str
    threads: int | None

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
        """The dimensions that were asked for."""
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

    def tokenizer(self) -> AnyTokenizer:
        """Open the tokenizer alone."""
        with forks.opening():
            return tokenizer_of(*self._with_weights())

    def backend(self) -> OnnxRuntime:
        """Open tokenizer and session."""
        folder, spec = self._with_weights()
        with forks.opening():
            return OnnxRuntime(
                folder, spec, device=self.device, precision=self.precision, threads=self.threads
            )

    def tower(self) -> Local | None:
        """The encoder for queries that lies in this one's folder."""
        if not self.spec().query_tower:
            return None
        folder = self._with_weights()[0] / QUERY_FOLDER
        spec = EncoderSpec.load(folder / SPEC_FILE)
        if spec.query_tower:
            raise EncoderFilesError(
                folder, "a tower with a tower of its own", needed="an encoder without one"
            )
        if spec.query_fingerprint != self.spec().query_tower:
            raise FingerprintMismatchError(
                spec.query_fingerprint, self.spec().query_tower, where=f"the encoder for queries in {folder}"
            )
        options = self.options | {"document_prompt": None}
        return replace(self, given=str(folder), path=folder, fingerprint=None, options=options)

    def _found(self) -> tuple[Path, EncoderSpec]:
        file = lookup.spec_file(self.path or lookup.find(self.name), given=self.given)
        spec = EncoderSpec.load(file).replace(**self.options)
        if self.fingerprint is not None and spec.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                spec.fingerprint, self.fingerprint, where=f"the encoder in {file.parent}"
            )
        return file.parent, spec

    def _with_weights(self) -> tuple[Path, EncoderSpec]:
        """Folder and spec; where the spec lies alone, the folder of that encoder under its name."""
        folder, spec = self._found()
        if any((folder / name).exists() for name in (MODEL_FILE, WEIGHTS_FILE)):
            return folder, spec
        try:
            found = lookup.find(spec.name)
        except EncoderNotFoundError as error:
            hint = f"{folder} holds the spec of the encoder, its weights are looked up by its name"
            raise EncoderNotFoundError(spec.name, [folder, *error.searched], hint=hint) from None
        other = EncoderSpec.load(lookup.spec_file(found)).replace(**self.options)
        if other.fingerprint != spec.fingerprint:
            raise FingerprintMismatchError(
                other.fingerprint, spec.fingerprint, where=f"the encoder in {found}"
            )
        return found, spec
