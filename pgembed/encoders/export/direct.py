"""Models built directly from their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pgembed.encoders.export import pooling, static
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.families import family
from pgembed.encoders.export.graph import Graph, WeightFile
from pgembed.encoders.export.int8 import Int8Graph
from pgembed.encoders.export.packed import PackedGraph
from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.export.weights import Weights, weight_files
from pgembed.encoders.onnx.graph_files import CUDA_FILE, INT8_FILE, MODEL_FILE, WEIGHTS_FILE

_GRAPHS: dict[str, type[Graph]] = {MODEL_FILE: Graph}
# All share the weights in 32 bit; only those in 8 bit are stored a second time.
_TRANSFORMER_GRAPHS = _GRAPHS | {INT8_FILE: Int8Graph, CUDA_FILE: PackedGraph}


class Direct:
    """A transformer of a known family, or a table of word vectors, with what follows it.

    :ivar architecture: as in :class:`EncoderSpec`.
    :ivar token_limit: the longest text in tokens.
    :ivar pooling: the pooling modes.
    :ivar vocabulary: rows of the embedding table.
    :ivar files: the files with weights.
    :raises UnsupportedArchitectureError: no family builds the model.
    :raises EncoderFilesError: weights are missing or damaged.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._build: Callable[[Graph], str]
        files = []
        if pipeline.first == "Transformer":
            config = ModelConfig.read(pipeline.folder.file("config.json"))
            members = family(config)
            files = weight_files(pipeline.folder)
            self.architecture = config.model_type
            self.token_limit = members.token_limit(config)
            self._weights = Weights(files, prefixes=members.PREFIXES, anchors=members.ANCHORS)
            rows = self._weights.take(self._weights.anchor, None, None)
            self._build = lambda graph: members.build(graph, config)
        else:
            files = weight_files(pipeline.folder)
            self.architecture = "static" if pipeline.first == "StaticEmbedding" else "words"
            self.token_limit = static.TOKEN_LIMIT
            self._weights = Weights(files, anchors=static.ANCHORS)
            rows = static.table(self._weights)
            self._build = lambda graph: graph.embed(rows)
        self.pooling = pipeline.pooling or ("mean",)
        self.vocabulary = int(rows.shape[0])
        self._hidden_width = int(rows.shape[1])
        self._steps = [
            (step, None if step.kind == "Normalize" else Weights(weight_files(step.folder)))
            for step in pipeline.steps
        ]
        later = [path for step, weights in self._steps if weights for path in weight_files(step.folder)]
        self.files = [*files, *later]

    def write(self, folder: Path) -> int:
        """Write graph and weights into ``folder``; returns the width of the vectors."""
        kinds = _TRANSFORMER_GRAPHS if self._pipeline.first == "Transformer" else _GRAPHS
        with (folder / WEIGHTS_FILE).open("wb") as file:
            weight_file = WeightFile(file, WEIGHTS_FILE)
            for name, kind in kinds.items():
                graph = kind(self._weights, weight_file, include_prompt=self._pipeline.include_prompt)
                hidden = graph.to_pool(self._build(graph), self._hidden_width)
                vectors = pooling.pool(graph, hidden, self.pooling)
                width = self._hidden_width * len(self.pooling)
                vectors, width = pooling.follow(graph, vectors, self._steps, width)
                (folder / name).write_bytes(graph.model(vectors, width=width).SerializeToString())
        return width
