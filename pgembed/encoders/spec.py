"""What decides a vector, in one small file, and its hash: the fingerprint.

The file is called ``encoder.json`` and is kept beside the weights; without them, it is enough to declare
columns, to migrate and to query with vectors.

A fingerprint identifies the vectors that are *stored*: everything on the side of the documents is part of it,
and nothing else. Device, threads, batch size, the version of the exporter and the query prompt are not,
because none of them makes a stored vector stale. 32 and 16 bit floats are one precision class (their
vectors agree within 1e-3 in cosine), int8 is another. :attr:`EncoderSpec.query_fingerprint` tells query
vectors apart in the same way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgembed.encoders.files import JsonObject, read_json, shown
from pgembed.exc import EncoderFilesError, EncoderOptionError

SPEC_FILE = "encoder.json"
FORMAT = 1
PRECISION_CLASSES = ("float", "int8")
ACTIVATIONS = ("identity", "sigmoid", "softmax")

# The fields that decide a document's vector. Their order is free, but renaming one changes every fingerprint.
_DECIDING = (
    "weights",
    "tokenizer",
    "architecture",
    "pooling",
    "steps",
    "normalize",
    "include_prompt",
    "lowercase",
    "special_tokens",
    "document_prompt",
    "max_tokens",
    "width",
    "dimensions",
    "precision",
)

# What decides the scores of a cross-encoder besides; where there are no labels, nothing of it.
_DECIDING_SCORES = ("labels", "activation", "segments")

# How a field is read, by its type.
_READERS: dict[str, Callable[[JsonObject, str], Any]] = {
    "str": JsonObject.text,
    "int": JsonObject.integer,
    "bool": JsonObject.flag,
    "tuple[str, ...]": lambda settings, name: tuple(settings.texts(name)),
    "Mapping[str, str]": lambda settings, name: settings.table(name).all_texts(),
}


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything that decides the vectors of an encoder, or the scores of a cross-encoder.

    The "vectors" of a cross-encoder are its logits, a number for each label and pair of texts.

    :ivar name: the name that the encoder is looked up by.
    :ivar architecture: ``"bert"``, ``"static"``, ``"onnx"`` (a ready graph), ...
    :ivar weights: SHA-256 (hex) of the weights that the graph was made from.
    :ivar tokenizer: SHA-256 (hex) of ``tokenizer.json``.
    :ivar width: dimensions of the vectors that the graph computes.
    :ivar dimensions: dimensions kept, at most ``width``; fewer means the first ones (Matryoshka).
    :ivar max_tokens: tokens of a text, special tokens and prompt included, beyond which it is cut.
    :ivar token_limit: the largest ``max_tokens`` that the model can take.
    :ivar pooling: pooling modes, concatenated in this order.
    :ivar steps: what follows the pooling: ``"dense:tanh"``, ``"layernorm"``, ``"normalize"``.
    :ivar normalize: whether vectors have length 1.
    :ivar query_prompt: put before every query.
    :ivar document_prompt: put before every document.
    :ivar query_tower: fingerprint of the separate encoder for queries, empty without one.
    :ivar include_prompt: whether the tokens of the prompt take part in the pooling.
    :ivar lowercase: whether texts are lowercased before they are tokenised.
    :ivar special_tokens: whether the tokenizer adds its special tokens.
    :ivar precision: precision class, ``"float"`` or ``"int8"``.
    :ivar vocabulary: rows of the embedding table, 0 if unknown.
    :ivar labels: the names of a cross-encoder's labels; empty for an encoder of texts.
    :ivar activation: what makes scores of its logits: ``"identity"``, ``"sigmoid"`` or ``"softmax"``.
    :ivar segments: whether it is told which of the two texts each token belongs to.
    :ivar token_vectors: whether its graphs give the vectors of tokens as well; older exports do not.
    :ivar files: SHA-256 (hex) of each file of the encoder's folder, to find damaged ones.
    :ivar source: where the model came from, for people.
    """

    name: str
    architecture: str
    weights: str
    tokenizer: str
    width: int
    dimensions: int
    max_tokens: int
    token_limit: int
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[str, ...] = ("normalize",)
    normalize: bool = True
    query_prompt: str = ""
    document_prompt: str = ""
    query_tower: str = ""
    include_prompt: bool = True
    lowercase: bool = False
    special_tokens: bool = True
    precision: str = "float"
    vocabulary: int = 0
    labels: tuple[str, ...] = ()
    activation: str = ""
    segments: bool = False
    token_vectors: bool = False
    files: Mapping[str, str] = field(default_factory=dict, hash=False)
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.dimensions <= self.width:
            raise EncoderOptionError(
                "dimensions", self.dimensions, needed=f"1 to {self.width}, the width of encoder {self.name!r}"
            )
        if not 1 <= self.max_tokens <= self.token_limit:
            raise EncoderOptionError(
                "max_tokens",
                self.max_tokens,
                needed=f"1 to {self.token_limit}, the limit of encoder {self.name!r}",
            )
        if self.precision not in PRECISION_CLASSES:
            raise EncoderOptionError("precision", self.precision, needed=" or ".join(PRECISION_CLASSES))
        if self.labels and self.dimensions != len(self.labels):
            needed = f"{len(self.labels)}, one for each label"
            raise EncoderOptionError("dimensions", self.dimensions, needed=needed)
        if self.labels and self.activation not in ACTIVATIONS:
            raise EncoderOptionError("activation", self.activation, needed=" or ".join(ACTIVATIONS))

    @property
    def fingerprint(self) -> str:
        """32 hex digits, equal exactly when two encoders give the same documents the same vectors."""
        names = _DECIDING + (_DECIDING_SCORES if self.labels else ())
        return self._hash({name: getattr(self, name) for name in names})

    @property
    def query_fingerprint(self) -> str:
        """As :attr:`fingerprint`, for the vectors of queries."""
        if self.query_tower:
            return self.query_tower
        deciding = {name: getattr(self, name) for name in _DECIDING if name != "document_prompt"}
        return self._hash(deciding | {"query_prompt": self.query_prompt})

    @staticmethod
    def _hash(deciding: dict[str, Any]) -> str:
        payload = json.dumps({"format": FORMAT} | deciding, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(payload.encode()).hexdigest()[:32]

    def replace(self, **changes: Any) -> EncoderSpec:
        """A copy with other values; those that are ``None`` stay as they are.

        :raises EncoderOptionError: a value that the model cannot take.
        """
        return dataclasses.replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )

    def save(self, path: Path) -> None:
        """Write the spec to ``path``, a file."""
        path.write_text(json.dumps(self.document(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def document(self) -> dict[str, Any]:
        """The spec as a JSON object, with its fingerprint."""
        return {"format": FORMAT, "fingerprint": self.fingerprint} | dataclasses.asdict(self)

    @classmethod
    def load(cls, path: Path) -> EncoderSpec:
        """Read the spec from ``path``, a file written by :meth:`save`.

        :raises EncoderFilesError: the file is not an encoder's spec, is of a newer format, or was edited so
            that its fingerprint no longer fits.
        """
        return cls.parse(read_json(path), path)

    @classmethod
    def parse(cls, document: Any, path: Path) -> EncoderSpec:
        """The spec in a JSON object made by :meth:`document`; ``path`` is for the errors of :meth:`load`."""
        needed = "the spec of an encoder, as `pgembed export` writes it"
        if not isinstance(document, dict) or "format" not in document:
            raise EncoderFilesError(path, "JSON of another kind", needed=needed)
        if document["format"] != FORMAT:
            raise EncoderFilesError(
                path,
                f"format {shown(document['format'])}",
                needed=f"format {FORMAT}: install the pgembed that wrote it",
            )
        settings = JsonObject(path, document)
        required = {item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING}
        missing = sorted((required | {"pooling", "steps"}) - settings.keys() - {"files"})
        if missing:
            raise EncoderFilesError(path, f"an incomplete spec (no {', '.join(missing)})", needed=needed)
        known = {
            item.name: _READERS[str(item.type)](settings, item.name)
            for item in dataclasses.fields(cls)
            if item.name in settings
        }
        try:
            spec = cls(**known)
        except EncoderOptionError as error:
            raise EncoderFilesError(path, f"a damaged spec ({error})", needed=needed) from error
        if not spec.name.isprintable():
            raise settings.wrong("name", needed="a name without control characters")
        stated = document.get("fingerprint")
        if stated != spec.fingerprint:
            raise EncoderFilesError(
                path,
                f"the fingerprint {shown(stated)} over values that give {spec.fingerprint!r}",
                needed="an unedited spec: give other prompts and limits to Encoder(...), or export again",
            )
        return spec
