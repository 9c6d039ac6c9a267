"""Running an encoder's graph with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgembed.encoders.batching import batches
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.threads import available_threads
from pgembed.encoders.tokenizing import open_tokenizer
from pgembed.encoders.tokens import Tokens
from pgembed.exc import EncoderFilesError, MissingExtraError

Vectors = npt.NDArray[np.float32]

MODEL_FILE = "model.onnx"

# Tokens of a batch. Matrix products reach their full speed at some hundred rows; more only takes memory.
_TOKEN_BUDGET = 4096
# Share of a batch that may be padding. Short texts gain more from larger batches than padding costs.
_SLACK = 0.1


class OnnxRuntime:
    """An open encoder: tokenizer and session. Safe to use from several threads at once.

    :param folder: the encoder's folder.
    :param spec: what is to be computed.
    :raises EncoderFilesError: a file is missing or damaged.
    :raises MissingExtraError: ``onnxruntime`` is not installed.
    """

    def __init__(self, folder: Path, spec: EncoderSpec, *, threads: int | None = None) -> None:
        self._spec = spec
        self._check_files(folder)
        self._tokenizer = open_tokenizer(
            folder,
            max_tokens=spec.max_tokens,
            special_tokens=spec.special_tokens,
            lowercase=spec.lowercase,
        )
        self._session = _open(folder / MODEL_FILE, threads or available_threads())

    def _check_files(self, folder: Path) -> None:
        for name in self._spec.files:
            if not (folder / name).is_file():
                raise EncoderFilesError(
                    folder / name,
                    "no file",
                    needed="all files of the encoder: export it again or copy it whole",
                )

    def encode(self, texts: list[str], prompt: str = "") -> Vectors:
        """Vectors of ``texts``, each with ``prompt`` before it, as float32 of shape (texts, dimensions)."""
        tokens = self._tokenizer([prompt + text for text in texts] if prompt else texts)
        skipped = self._tokenizer.leading(prompt) if prompt and not self._spec.include_prompt else 0
        vectors = np.empty((len(texts), self._spec.dimensions), dtype=np.float32)
        for batch in batches(tokens.lengths, budget=_TOKEN_BUDGET, slack=_SLACK):
            vectors[batch] = self._kept(self._run(tokens, batch, skipped))
        return vectors

    def _run(self, tokens: Tokens, batch: npt.NDArray[np.intp], skipped: int) -> Vectors:
        lengths = tokens.lengths[batch]
        inside = np.arange(max(int(lengths.max()), 1)) < lengths[:, None]
        ids = np.zeros(inside.shape, dtype=np.int64)
        ids[inside] = np.concatenate([tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in batch])
        feed = {"input_ids": ids, "attention_mask": inside.astype(np.int64)}
        if not self._spec.include_prompt:
            feed["pooling_mask"] = feed["attention_mask"].copy()
            feed["pooling_mask"][:, :skipped] = 0
        (vectors,) = self._session.run(["embedding"], feed)
        return np.asarray(vectors, dtype=np.float32)

    def _kept(self, vectors: Vectors) -> Vectors:
        """The first dimensions, where fewer were asked for, scaled again to length 1 if they were before."""
        if self._spec.dimensions == self._spec.width:
            return vectors
        kept = vectors[:, : self._spec.dimensions]
        if self._spec.normalize:
            kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))
        return kept


def _open(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu", needed_for="computing vectors") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The fused kernel runs element by element on the CPU; the sum and the norm apart are faster.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise EncoderFilesError(
            path, f"a graph that cannot be opened ({error})", needed="an intact encoder"
        ) from error
