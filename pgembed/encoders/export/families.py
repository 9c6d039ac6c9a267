"""Models built from their weights: transformers of the families that are known, and averages of word vectors.

Averages need no transformer: model2vec and other static models, GloVe, DAN. Sources: ``StaticEmbedding`` and
``WordEmbeddings`` of sentence-transformers; Iyyer et al., Deep Unordered Composition (2015) for averages with
dense layers on top.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pgembed.encoders.export import pooling
from pgembed.encoders.export.bert import Bert, DistilBert, Mpnet, Roberta
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.graph import Graph
from pgembed.encoders.export.graph_variants import Int8Graph, PackedGraph
from pgembed.encoders.export.head import ClassifierHead
from pgembed.encoders.export.modernbert import ModernBert
from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.export.weight_file import WeightFile
from pgembed.encoders.export.weights import Array, Weights, weight_files
from pgembed.encoders.onnx.graph_files import CUDA_FILE, INT8_FILE, MODEL_FILE, WEIGHTS_FILE
from pgembed.exc import EncoderFilesError, UnsupportedArchitectureError

_GRAPHS: dict[str, type[Graph]] = {MODEL_FILE: Graph}
# All share the weights in 32 bit; only those in 8 bit are stored a second time.
_TRANSFORMER_GRAPHS = _GRAPHS | {INT8_FILE: Int8Graph, CUDA_FILE: PackedGraph}
_WORD_VECTORS = ("embedding.weight", "embeddings", "emb_layer.weight")
_UNLIMITED = 1_000_000  # tokens: averages are made of texts of any length


class Family(Protocol):
    """An architecture."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its weights may begin with."""
        ...

    @property
    def anchors(self) -> tuple[str, ...]:
        """Names of its embedding table."""
        ...

    @property
    def has_segments(self) -> bool:
        """Whether it tells the tokens of two texts apart."""
        ...

    def token_limit(self, config: ModelConfig) -> int:
        """The longest text in tokens."""
        ...

    def build(self, graph: Graph, config: ModelConfig) -> str:
        """Add the model to the graph; returns the last hidden state, (tokens, width)."""
        ...


#: By the ``model_type`` of ``config.json``.
FAMILIES: dict[str, Family] = {
    "bert": Bert(),
    "roberta": Roberta(),
    "xlm-roberta": Roberta(),
    "camembert": Roberta(),
    "distilbert": DistilBert(),
    "mpnet": Mpnet(),
    "modernbert": ModernBert(),
}


class BuiltModel:
    """A transformer of a known family, or a table of word vectors, with what follows it.

    :ivar architecture: as in :class:`EncoderSpec`.
    :ivar token_limit: the longest text in tokens.
    :ivar pooling: the pooling modes.
    :ivar vocabulary: rows of the embedding table.
    :ivar segments: whether it is told which text of a pair each token is of.
    :ivar token_vectors: whether the vectors of tokens are an output.
    :ivar files: the files with weights.
    :raises UnsupportedArchitectureError: no family builds the model.
    :raises EncoderFilesError: weights are missing or damaged.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._build: Callable[[Graph], str]
        self._head: ClassifierHead | None = None
        self.segments = False
        if pipeline.first == "Transformer":
            config = ModelConfig.read(pipeline.folder.file("config.json"))
            family = FAMILIES.get(config.model_type)
            if family is None:
                raise UnsupportedArchitectureError(config.model_type, tuple(FAMILIES))
            files = weight_files(pipeline.folder)
            self.architecture = config.model_type
            self.token_limit = family.token_limit(config)
            self._weights = Weights(files, prefixes=family.prefixes, anchors=family.anchors)
            rows = self._weights.take(self._weights.anchor, None, None)
            self._build = lambda graph: family.build(graph, config)
            if pipeline.classifier is not None:
                self._head = ClassifierHead(config, files, len(pipeline.classifier.labels))
                self.segments = family.has_segments and pipeline.classifier.segments
        else:
            files = weight_files(pipeline.folder)
            self.architecture = "static" if pipeline.first == "StaticEmbedding" else "words"
            self.token_limit = _UNLIMITED
            self._weights = Weights(files, anchors=_WORD_VECTORS)
            rows = _word_vectors(self._weights)
            self._build = lambda graph: graph.embed(rows)
        self.token_vectors = pipeline.first == "Transformer" and self._head is None
        self.pooling = pipeline.pooling or ("mean",) if self._head is None else self._head.pooling
        self.vocabulary = int(rows.shape[0])
        self._hidden_width = int(rows.shape[1])
        self._steps, later = pooling.opened(pipeline.steps)
        self.files = [*files, *later]

    def write(self, folder: Path) -> int:
        """Write graph and weights into ``folder``; returns the width of the vectors."""
        pipeline = self._pipeline
        kinds = _TRANSFORMER_GRAPHS if pipeline.first == "Transformer" else _GRAPHS
        with (folder / WEIGHTS_FILE).open("wb") as file:
            weight_file = WeightFile(file, WEIGHTS_FILE)
            for name, kind in kinds.items():
                graph = kind(
                    self._weights, weight_file, include_prompt=pipeline.include_prompt, segments=self.segments
                )
                hidden = graph.to_pool(self._build(graph), self._hidden_width)
                vectors, width = self._after(graph, hidden)
                tokens = (hidden, self._hidden_width) if self.token_vectors else None
                model = graph.model(vectors, width=width, tokens=tokens)
                (folder / name).write_bytes(model.SerializeToString())
        return width

    def _after(self, graph: Graph, hidden: str) -> tuple[str, int]:
        """What follows the transformer: the result and its width."""
        if self._head is not None:
            return self._head.add(graph, hidden, self._hidden_width)
        vectors = pooling.pool(graph, hidden, self.pooling)
        return pooling.follow(graph, vectors, self._steps, self._hidden_width * len(self.pooling))


def _word_vectors(weights: Weights) -> Array:
    """One vector a token id.

    model2vec may store fewer vectors than tokens (``mapping``) and a weight for each token (``weights``).
    """
    rows = weights.take(weights.anchor, None, None, kinds="fi")  # model2vec has some in 8 bit
    if weights.anchor == "embeddings":
        if "mapping" in weights:
            mapping = weights.numbers("mapping", None)
            if not 0 <= mapping.min() <= mapping.max() < len(rows):
                found = f"a mapping to the rows {mapping.min()} to {mapping.max()}"
                raise EncoderFilesError(weights.files[0], found, needed=f"rows 0 to {len(rows) - 1}")
            rows = rows[mapping]
        if "weights" in weights:
            rows = rows * weights.take("weights", len(rows))[:, None]
    return np.ascontiguousarray(rows, dtype=np.float32)
