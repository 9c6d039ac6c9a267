"""The encoder as users hold it: cheap to make, opened at first use, shared by threads, safe over forks."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from pgembed.encoders import device as devices
from pgembed.encoders import lookup
from pgembed.encoders.graphs import MODEL_FILE, QUERY_FOLDER, WEIGHTS_FILE
from pgembed.encoders.recent import RecentVectors
from pgembed.encoders.runtime import Kind, OnnxRuntime, Vectors
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.texts import checked, distinct
from pgembed.encoders.tokenizing import open_tokenizer
from pgembed.exc import EncoderError, EncoderNotFoundError, EncoderOptionError, FingerprintMismatchError

PRECISIONS = ("auto", "fp32", "fp16", "int8")


class Backend(Protocol):
    """What computes the vectors: a session of this process, or a server."""

    def encode(self, texts: list[str], kind: Kind) -> tuple[Vectors, int]:
        """Vectors of different texts, prompts not yet included, and how many texts were cut."""
        ...


class Encoder:
    """Texts to vectors.

    The constructor reads one small file, the encoder's spec, so encoders can be module constants next to
    the models that use them. Weights are looked up and opened by the first call that computes something; a
    machine that only migrates or builds statements needs none. After a fork the child opens its own session.

    ``Encoder("all-MiniLM-L6-v2")`` looks into the folders of ``PGEMBED_ENCODERS`` and the user's data folder;
    ``Encoder("./encoders/minilm")`` and ``Encoder(Path(...))`` are paths, of a folder or of a spec alone
    (``encoder.json``, whose weights are then found by the name in it).
    ``Encoder("minilm", fingerprint="...", dimensions=384)`` reads nothing at all until it is used.

    :param name_or_path: a name, or a path (anything with a separator in it), made absolute at once.
    :param device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: a GPU if one can be used.
    :param precision: ``"auto"`` is float32 on the CPU and float16 on CUDA, one class of vectors; ``"int8"``
        (on the CPU, about 1 % less exact) has a fingerprint of its own.
    :param dimensions: keep the first so many dimensions, for models trained for that (Matryoshka).
    :param max_tokens: cut texts at so many tokens instead of the model's own limit.
    :param query_prompt: put before queries instead of the model's own prompt.
    :param document_prompt: put before documents instead of the model's own prompt.
    :param fingerprint: the fingerprint that the vectors must have. Checked against the spec, or, together
        with ``dimensions``, taken on trust until something has to be encoded.
    :param threads: threads of the runtime; by default what affinity and cgroup allow.
    :param query_encoder: another encoder, by name, path or itself, for the queries of models with two towers.
        It must share the vector space; the fingerprint remains that of the documents.
    :param query_cache: how many vectors of queries are remembered, 0 for none.
    :raises EncoderNotFoundError: no encoder of that name or at that path.
    :raises EncoderFilesError: its spec cannot be read.
    :raises EncoderOptionError: an option has a value that the encoder cannot take.
    :raises FingerprintMismatchError: the encoder found has another fingerprint than the one stated.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        dimensions: int | None = None,
        max_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        fingerprint: str | None = None,
        threads: int | None = None,
        query_encoder: str | os.PathLike[str] | Encoder | None = None,
        query_cache: int = 1024,
    ) -> None:
        devices.check_name(device)
        if precision not in PRECISIONS:
            raise EncoderOptionError("precision", precision, needed=" or ".join(PRECISIONS))
        if threads is not None and threads < 1:
            raise EncoderOptionError("threads", threads, needed="1 or more")
        self._path = lookup.as_path(name_or_path)
        self._given = str(name_or_path)
        self._name = self._given if self._path is None else self._path.name
        self._machine: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        self._stated = fingerprint
        self._options: dict[str, Any] = {
            "dimensions": dimensions,
            "max_tokens": max_tokens,
            "query_prompt": query_prompt,
            "document_prompt": document_prompt,
            "precision": "int8" if precision == "int8" else None,
        }
        self._query_cache = query_cache
        self._start()
        self._query_encoder = self._given_query_encoder = _tower(query_encoder, self._machine)
        if fingerprint is None or dimensions is None:
            self._load_spec()
        if self._query_encoder is not None and self._query_encoder.dimensions != self.dimensions:
            found = f"one of {self._query_encoder.dimensions} dimensions"
            raise EncoderOptionError("query_encoder", found, needed=f"{self.dimensions} dimensions")

    def _start(self) -> None:
        """What an encoder holds besides its arguments."""
        self._lock = threading.RLock()
        self._spec: EncoderSpec | None = None
        self._runtime: Backend | None = None
        self._closed = False
        self._cut = 0
        self._recent = RecentVectors(self._query_cache)
        _alive.add(self)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name in the spec, or the one that was given while no spec has been read."""
        return self._name if self._spec is None else self._spec.name

    @property
    def spec(self) -> EncoderSpec:
        """Everything that decides the vectors, with the options of this encoder in place.

        :raises EncoderNotFoundError: only a fingerprint was stated, and there is no such encoder here.
        """
        with self._lock:
            return self._spec or self._load_spec()[1]

    @property
    def dimensions(self) -> int:
        """Dimensions of the vectors."""
        return int(self._options["dimensions"] if self._spec is None else self._spec.dimensions)

    @property
    def fingerprint(self) -> str:
        """What decides the vectors of documents, as 32 hex digits; see :class:`EncoderSpec`."""
        return self._stated or self.spec.fingerprint

    @property
    def max_tokens(self) -> int:
        """Tokens at which texts are cut, special tokens and prompt included."""
        return self.spec.max_tokens

    @property
    def cut(self) -> int:
        """How many texts so far were longer than :attr:`max_tokens`."""
        return self._cut

    def __repr__(self) -> str:
        shown = [repr(self.name if self._path is None else str(self._path)), f"dimensions={self.dimensions}"]
        shown += [f"fingerprint={self.fingerprint[:8]}..."]
        return f"<Encoder {', '.join(shown)}>"

    # --- what it does -----------------------------------------------------------------------------

    def encode_documents(self, texts: Iterable[str]) -> Vectors:
        """Vectors of texts that are stored and searched.

        Texts longer than :attr:`max_tokens` are cut. Equal texts are encoded once.

        :param texts: any number of strings; empty ones are texts too.
        :returns: float32 of shape ``(len(texts), dimensions)``, in the order of ``texts``.
        :raises TextError: something is no text; it names the position.
        :raises EncoderNotFoundError: the weights are not on this machine.
        :raises EncoderFilesError: the encoder's files are damaged.
        """
        return self._encode(texts, "document")

    def encode_queries(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_documents`, for texts that are searched with: the prompt is that of queries.

        The vectors of recent queries are remembered.
        """
        wanted = checked(texts)
        if not wanted:
            return np.empty((0, self.dimensions), dtype=np.float32)
        tower = self._query_encoder or self._own_tower()
        if tower is not None:
            return tower.encode_queries(wanted)
        return self._recent.through(wanted, lambda missing: self._encode(missing, "query"), self.dimensions)

    def count_cut(self, texts: Iterable[str]) -> int:
        """How many of these documents are longer than :attr:`max_tokens`: opens the tokenizer, no weights.

        :raises TextError: something is no text.
        :raises EncoderNotFoundError: the tokenizer is not on this machine.
        """
        folder, spec = self._load_spec()
        tokenizer = open_tokenizer(
            self._with_weights(folder, spec),
            max_tokens=spec.max_tokens,
            special_tokens=spec.special_tokens,
            lowercase=spec.lowercase,
        )
        return tokenizer([spec.document_prompt + text for text in checked(texts)]).cut

    def _own_tower(self) -> Encoder | None:
        """The encoder for queries that lies in this one's folder."""
        if not self.spec.query_tower:
            return None
        with self._lock:
            self._check_open()
            folder = self._with_weights(*self._load_spec()) / QUERY_FOLDER
            options = {key: self._options[key] for key in ("dimensions", "max_tokens", "query_prompt")}
            self._query_encoder = Encoder(folder, **options, **self._machine, query_cache=self._query_cache)
            return self._query_encoder

    async def aencode_documents(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_documents`, on another thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.encode_documents, list(texts))

    async def aencode_queries(self, texts: Iterable[str]) -> Vectors:
        """As :meth:`encode_queries`, on another thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.encode_queries, list(texts))

    def _encode(self, texts: Iterable[str], kind: Kind) -> Vectors:
        wanted = checked(texts)
        if not wanted:
            return np.empty((0, self.dimensions), dtype=np.float32)
        different, inverse = distinct(wanted)
        vectors, cut = self._opened().encode(different, kind)
        with self._lock:
            self._cut += cut
        return vectors if len(different) == len(wanted) else vectors[inverse]

    # --- life -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the weights now instead of at the first use."""
        self._opened()

    def close(self) -> None:
        """Give back the memory of the weights; a closed encoder encodes no more."""
        with self._lock:
            self._closed = True
            self._runtime = None
            if self._query_encoder is not None and self._query_encoder is not self._given_query_encoder:
                self._query_encoder.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Backend:
        runtime = self._runtime
        if runtime is not None:
            return runtime
        with self._lock:
            self._check_open()
            if self._runtime is None:
                self._runtime = self._make_backend()
            return self._runtime

    def _check_open(self) -> None:
        if self._closed:
            raise EncoderError(f"encoder {self.name!r} is closed: make a new one")

    def _make_backend(self) -> Backend:
        folder, spec = self._load_spec()
        return OnnxRuntime(self._with_weights(folder, spec), spec, **self._machine)

    def _load_spec(self) -> tuple[Path, EncoderSpec]:
        """Find and read the spec, and put this encoder's options into it; returns its folder too."""
        file = lookup.spec_file(self._path or lookup.find(self._name), given=self._given)
        spec = EncoderSpec.load(file).replace(**self._options)
        if self._stated is not None and spec.fingerprint != self._stated:
            raise FingerprintMismatchError(
                spec.fingerprint, self._stated, where=f"the encoder in {file.parent}"
            )
        self._spec = spec
        return file.parent, spec

    def _with_weights(self, folder: Path, spec: EncoderSpec) -> Path:
        """``folder``; if it holds the spec alone, the folder of that encoder under its name."""
        if any((folder / name).exists() for name in (MODEL_FILE, WEIGHTS_FILE)):
            return folder
        try:
            found = lookup.find(spec.name)
        except EncoderNotFoundError as error:
            hint = f"{folder} holds the spec of the encoder, its weights are looked up by its name"
            raise EncoderNotFoundError(spec.name, [folder, *error.searched], hint=hint) from None
        other = EncoderSpec.load(lookup.spec_file(found)).replace(**self._options)
        if other.fingerprint != spec.fingerprint:
            raise FingerprintMismatchError(
                other.fingerprint, spec.fingerprint, where=f"the encoder in {found}"
            )
        return found

    # --- copies: an encoder is a shared resource, described by its arguments ------------------------

    @staticmethod
    def remote(url: str, **options: Any) -> Encoder:
        """An encoder whose vectors a server computes; see :class:`~pgembed.encoders.remote.RemoteEncoder`."""
        from pgembed.encoders.remote import RemoteEncoder

        return RemoteEncoder(url, **options)

    def __copy__(self) -> Encoder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        options = self._options | self._machine | {"fingerprint": self._stated}
        options |= {"query_encoder": self._given_query_encoder, "query_cache": self._query_cache}
        return _rebuild, (type(self), self._path or self._name, options)

    def _after_fork(self) -> None:
        """Forget, in the child, the parent's session: its threads do not exist here."""
        self._lock = threading.RLock()
        self._recent = RecentVectors(self._query_cache)
        if self._runtime is not None:
            _left_behind.append(self._runtime)
            self._runtime = None


def _tower(encoder: str | os.PathLike[str] | Encoder | None, machine: dict[str, Any]) -> Encoder | None:
    if encoder is None or isinstance(encoder, Encoder):
        return encoder
    return Encoder(encoder, **machine)


def _rebuild(kind: type[Encoder], name_or_path: str | Path, options: dict[str, Any]) -> Encoder:
    return kind(name_or_path, **options)


_alive: weakref.WeakSet[Encoder] = weakref.WeakSet()
# Sessions of the parent process, never destroyed in the child: their destructor would wait for threads.
_left_behind: list[Backend] = []


def _after_fork() -> None:
    for encoder in list(_alive):
        encoder._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
