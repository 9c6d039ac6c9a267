"""Running an encoder's graph with ONNX Runtime."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pgembed.encoders import forks
from pgembed.encoders.onnx import device as devices
from pgembed.encoders.onnx.device import CPU_PROVIDER, CUDA_PROVIDER, Device
from pgembed.encoders.onnx.feeds import (
    Allocate,
    Batch,
    Feed,
    Feeder,
    batches,
    fresh,
    packed,
    padded,
    without_prompt,
)
from pgembed.encoders.onnx.graph_files import CUDA_FILE, INT8_FILE, MODEL_FILE, check_files
from pgembed.encoders.onnx.lanes import Lanes
from pgembed.encoders.spec import EncoderSpec
from pgembed.encoders.text.pair_tokenizer import tokenizer_of
from pgembed.encoders.text.texts import Encoded, Kind, Text, Vectors
from pgembed.encoders.text.tokenizer import Tokens
from pgembed.encoders.threads import available_threads
from pgembed.exc import DeviceError, EncoderError, EncoderFilesError, EncoderOptionError

Job = TypeVar("Job")

# Texts that are tokenised and sorted together: enough to find many of similar length, few enough that the
# memory for their ids stays small, whatever the number of texts.
_WINDOW = 16_384


@dataclass(frozen=True)
class ExecutionPlan:
    """How an encoder is run on a device.

    :ivar graph: the graph's file.
    :ivar feeder: makes its inputs.
    :ivar budget: tokens of a batch.
    :ivar overhead: what a batch costs beyond its tokens, as a number of tokens.
    :ivar runs: batches that run at once, each in its own lane, so that a GPU need not wait for the next one's
        inputs.
    """

    graph: str
    feeder: Feeder
    budget: int
    overhead: int
    runs: int = 1


def plan(device: Device, precision: str, spec: EncoderSpec) -> ExecutionPlan:
    """Choose graph and batches for a device and a precision.

    :raises EncoderOptionError: the encoder has no graph for them.
    """
    if precision == "int8":
        if device.kind != "cpu":
            raise EncoderOptionError("precision", precision, needed="fp16 or fp32 on CUDA")
        if INT8_FILE not in spec.files:
            raise EncoderOptionError("precision", precision, needed=f"fp32: {spec.name!r} has no int8 graph")
        return ExecutionPlan(INT8_FILE, padded, 4096, 16)
    if device.kind == "cuda" and precision in ("auto", "fp16") and CUDA_FILE in spec.files:
        return ExecutionPlan(CUDA_FILE, packed, 32_768, 4096, runs=3)
    if precision == "fp16":
        where = "fp32 on the CPU" if device.kind == "cpu" else f"fp32: {spec.name!r} has no fp16 graph"
        raise EncoderOptionError("precision", precision, needed=where)
    # Matrix products on the CPU reach their full speed at some hundred rows; more only takes memory.
    if device.kind == "cpu":
        return ExecutionPlan(MODEL_FILE, padded, 4096, 16)
    return ExecutionPlan(MODEL_FILE, padded, 32_768, 1024, runs=3)


class OnnxRuntime:
    """An open encoder: tokenizer and session. Safe to use from several threads at once.

    :param folder: the encoder's folder.
    :param spec: what is to be computed.
    :param device: as of :class:`~pgembed.encoders.Encoder`; ``precision`` and ``threads`` too.
    :raises EncoderFilesError: a file is missing or damaged.
    :raises EncoderOptionError: the encoder has no graph for device and precision.
    :raises DeviceError: CUDA was requested and cannot be used.
    :raises MissingExtraError: ``onnxruntime`` is not installed.
    """

    def __init__(
        self,
        folder: Path,
        spec: EncoderSpec,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        forks.inherit(self)
        self._spec = spec
        threads = threads or available_threads()
        # 8 bit is for the CPU, so there is nothing to choose.
        chosen = devices.choose("cpu" if (device, precision) == ("auto", "int8") else device)
        try:
            self._start_on(folder, chosen, precision, threads)
        except DeviceError as error:
            if device != "auto" or precision == "fp16":
                raise
            devices.log_once(logging.WARNING, f"event=device device=cpu reason={str(error)!r}")
            self._start(folder, Device("cpu"), precision, threads)

    def _start_on(self, folder: Path, device: Device, precision: str, threads: int) -> None:
        """Start with the best graph that the device can run.

        Not every GPU has kernels for packed texts in 16 bits. Unless those were requested, padded texts in 32
        bits replace them, on the same GPU, with vectors of the same class.
        """
        try:
            self._start(folder, device, precision, threads)
        except DeviceError as error:
            if precision != "auto" or self._plan.graph != CUDA_FILE:
                raise
            self._start(folder, device, "fp32", threads)
            line = f"event=precision device={device} precision=fp32 reason={error.found!r}"
            devices.log_once(logging.WARNING, line)

    def _start(self, folder: Path, device: Device, precision: str, threads: int) -> None:
        self.device = device
        self._plan = plan(device, precision, self._spec)
        self._path = folder / self._plan.graph
        spec = self._spec
        # Reading all bytes and the tokenizer takes as long as opening the session; in parallel they cost next
        # to nothing.
        with ThreadPoolExecutor(2) as other_threads:
            intact = other_threads.submit(check_files, folder, spec, self._plan.graph)
            tokenizer = other_threads.submit(tokenizer_of, folder, spec)
            try:
                self._session = _open(self._path, device, threads)
                self._lanes = None
                if self._plan.runs == 1:
                    _check_output(self._session, self._path, spec.width)
                else:
                    self._lanes = Lanes(self._session, device, spec.width, count=self._plan.runs)
                self._tokenizer = tokenizer.result()
            finally:
                intact.result()  # has the best error for a damaged file
        if device.kind == "cuda":
            self._try(spec.fingerprint)

    def _try(self, fingerprint: str) -> None:
        """Encode a little: only a run shows that a GPU lacks some of the kernels."""
        try:
            tried = [(text, text) if self._spec.labels else text for text in ("a", fingerprint)]
            vectors = self.encode(tried, "document").vectors
        except Exception as error:  # onnxruntime's errors share no other base
            raise _refused(self.device, self._plan.graph, error) from error
        if not np.isfinite(vectors).all():
            raise _refused(self.device, self._plan.graph, "vectors with NaN or infinity")

    def encode(self, texts: Sequence[Text], kind: Kind) -> Encoded:
        """Vectors of ``texts``, each with the prompt of its kind in front; or the logits of pairs."""
        prompt = self._spec.query_prompt if kind == "query" else self._spec.document_prompt
        skipped = self._tokenizer.leading(prompt) if prompt and not self._spec.include_prompt else 0
        vectors = np.empty((len(texts), self._spec.dimensions), dtype=np.float32)
        counts = np.empty(len(texts), dtype=np.int64)
        cut = 0

        def planned() -> Iterator[tuple[Tokens, Batch, Vectors]]:
            """All batches, and the part of the vectors that each one's indices point into."""
            nonlocal cut
            start = 0
            for tokens in self._tokenised(texts, prompt):
                end = start + len(tokens.lengths)
                counts[start:end] = tokens.lengths
                cut += tokens.cut
                plan = self._plan
                for batch in batches(tokens.lengths, budget=plan.budget, overhead=plan.overhead):
                    yield tokens, batch, vectors[start:end]
                start = end

        def compute(job: tuple[Tokens, Batch, Vectors]) -> None:
            tokens, batch, part = job
            self._compute(tokens, batch, skipped, part)

        _all_done(compute, planned(), threads=self._plan.runs)
        return Encoded(vectors, counts, cut)

    def token_vectors(self, tokens: Tokens) -> Iterator[tuple[Batch, Vectors]]:
        """The last hidden states: batches of indices of texts, each with (texts, longest, width).

        Texts are padded on the right with anything; memory is bounded by the budget of a batch.
        """
        plan = self._plan
        for batch in batches(tokens.lengths, budget=plan.budget, overhead=plan.overhead):
            yield batch, self._run(self._feed(tokens, batch, 0, fresh), "token_embeddings")

    def _tokenised(self, texts: Sequence[Text], prompt: str) -> Iterator[Tokens]:
        """The tokens of ``texts``, window by window; a GPU works on one while the next is tokenised."""

        def tokenise(start: int) -> Tokens:
            window = texts[start : start + _WINDOW]
            return self._tokenizer([f"{prompt}{text}" for text in window] if prompt else window)

        starts = range(0, len(texts), _WINDOW)
        if self._plan.runs == 1 or len(starts) == 1:
            yield from map(tokenise, starts)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting: Future[Tokens] = ahead.submit(tokenise, 0)
            for start in starts[1:]:
                ready, waiting = waiting.result(), ahead.submit(tokenise, start)
                yield ready
            yield waiting.result()

    def _compute(self, tokens: Tokens, batch: Batch, skipped: int, vectors: Vectors) -> None:
        """Compute a batch, and put its vectors into their rows."""
        if self._lanes is None:
            computed = self._run(self._feed(tokens, batch, skipped, fresh))
            if computed.shape != (len(batch), self._spec.width):
                found = f"vectors of shape {computed.shape}"
                raise EncoderFilesError(self._path, found, needed=f"{(len(batch), self._spec.width)}")
            vectors[batch] = self._kept(computed)
            return
        with self._lanes.one() as lane:
            computed = lane.run(self._feed(tokens, batch, skipped, lane.buffers.array))
            vectors[batch] = self._kept(computed)

    def _run(self, feed: Feed, output: str = "embedding") -> Vectors:
        """
        :raises EncoderError: ONNX Runtime fails; its own errors share no base.
        """
        try:
            (computed,) = self._session.run([output], feed)
        except Exception as error:
            raise EncoderError(f"{self._path}: ONNX Runtime cannot run this graph: {error}") from error
        vectors: Vectors = computed
        return vectors

    def _feed(self, tokens: Tokens, batch: Batch, skipped: int, new: Allocate) -> Feed:
        feed = self._plan.feeder(tokens, batch, new)
        if not self._spec.include_prompt:
            without_prompt(feed, skipped, new)
        return feed

    def _kept(self, vectors: Vectors) -> Vectors:
        """The first dimensions, if fewer were requested, normalised again where those of the model are."""
        if self._spec.dimensions == self._spec.width:
            return vectors
        kept = vectors[:, : self._spec.dimensions]
        if self._spec.normalize:
            kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))
        return kept


def _all_done(work: Callable[[Job], None], jobs: Iterator[Job], *, threads: int) -> None:
    """Do the work for all jobs, in turn or on several threads; jobs are taken only a little ahead."""
    if threads == 1:
        for job in jobs:
            work(job)
        return
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[None]] = deque()
        for job in jobs:
            under_way.append(pool.submit(work, job))
            if len(under_way) > 2 * threads:
                under_way.popleft().result()
        for future in under_way:
            future.result()


def _open(path: Path, device: Device, threads: int) -> Any:
    onnxruntime = devices.runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait for work by spinning take the cores from Postgres, other workers and clients; asleep
    # they cost a single query a fraction of a millisecond, and batches nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [CPU_PROVIDER]
    if device.kind == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):  # finds the libraries of NVIDIA's packages, from 1.21 on
            onnxruntime.preload_dlls()
        # TF32 would round float32 products to 10 bits.
        providers = [(CUDA_PROVIDER, {"device_id": device.index, "use_tf32": 0}), CPU_PROVIDER]
    else:
        # The fused kernel runs element by element on the CPU; the sum and the norm apart are faster.
        options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no other base
        if device.kind == "cuda":  # check_files finds out whether the file is damaged
            raise _refused(device, path.name, error) from error
        raise EncoderFilesError(
            path, f"a graph that cannot be opened ({error})", needed="an intact encoder"
        ) from error
    devices.check_session(session, device)
    return session


def _refused(device: Device, graph: str, reason: object) -> DeviceError:
    precision = "precision='fp32' or " if graph == CUDA_FILE else ""
    return DeviceError(
        str(device), f"it cannot run {graph} ({reason})", fix=f"Ask for {precision}device='cpu'"
    )


def _check_output(session: Any, path: Path, width: int) -> None:
    """Refuse a graph that computes something other than the spec says."""
    outputs = {output.name: output.shape for output in session.get_outputs()}
    if "embedding" not in outputs:
        raise EncoderFilesError(path, "no output 'embedding'", needed="the graph of an encoder")
    found = outputs["embedding"][-1] if len(outputs["embedding"]) == 2 else "no known number of"
    if found != width:
        raise EncoderFilesError(path, f"vectors of {found} dimensions", needed=f"{width}, as in the spec")
