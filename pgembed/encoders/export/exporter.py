"""From a model folder to an encoder folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx

from pgembed.encoders.export import pipeline as pipelines
from pgembed.encoders.export import pooling
from pgembed.encoders.export.config import ModelConfig
from pgembed.encoders.export.families import family
from pgembed.encoders.export.folder import written_whole
from pgembed.encoders.export.graph import Graph, WeightFile
from pgembed.encoders.export.weights import Weights, digest, file_digest, weight_files
from pgembed.encoders.runtime import MODEL_FILE
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.tokens import TOKENIZER_FILE, Tokenizer
from pgembed.exc import EncoderFilesError

WEIGHTS_FILE = "weights.bin"
_LIMIT_UNSTATED = 512


def export(
    model_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    name: str | None,
    source: str,
    overwrite: bool,
    expected: str | None,
) -> EncoderSpec:
    """See :func:`pgembed.encoders.export_onnx`."""
    folder, target = Path(model_dir).expanduser().absolute(), Path(out_dir).expanduser().absolute()
    pipeline = pipelines.read(folder)
    config = ModelConfig(pipeline.transformer / "config.json")
    members = family(config)
    limit = members.token_limit(config)
    files = weight_files(pipeline.transformer)
    checksum = digest(files)
    if expected is not None and checksum != expected:
        raise EncoderFilesError(pipeline.transformer, f"weights with SHA-256 {checksum}", needed=expected)
    weights = Weights(files, prefixes=members.PREFIXES, anchor=members.ANCHOR)
    vocabulary = len(weights[members.ANCHOR])
    max_tokens = min(pipeline.max_tokens or _LIMIT_UNSTATED, limit)
    highest = Tokenizer(pipeline.tokenizer, max_tokens=max_tokens).highest_id
    if highest >= vocabulary:
        raise EncoderFilesError(
            pipeline.tokenizer,
            f"token ids up to {highest}",
            needed=f"ids below {vocabulary}, the rows of the embedding table, so the tokenizer of this model",
        )
    with written_whole(target, overwrite=overwrite) as fresh:
        with (fresh / WEIGHTS_FILE).open("wb") as file:
            graph = Graph(weights, WeightFile(file, WEIGHTS_FILE))
            hidden_width = members.width(config)
            hidden = graph.to_pool(members.build(graph, config), hidden_width)
            vectors = pooling.pool(graph, hidden, pipeline.pooling)
            if pipeline.normalize:
                vectors = pooling.normalize(graph, vectors)
            width = hidden_width * len(pipeline.pooling)
            model = graph.model(vectors, width=width)
        onnx.save(model, fresh / MODEL_FILE)
        onnx.checker.check_model(fresh / MODEL_FILE)
        shutil.copyfile(pipeline.tokenizer, fresh / TOKENIZER_FILE)
        shutil.copyfile(config.path, fresh / "config.json")
        spec = EncoderSpec(
            name=name or target.name,
            architecture=config.model_type,
            weights=checksum,
            tokenizer=file_digest(pipeline.tokenizer),
            width=width,
            dimensions=pipeline.dimensions or width,
            max_tokens=max_tokens,
            token_limit=limit,
            pooling=pipeline.pooling,
            normalize=pipeline.normalize,
            query_prompt=pipeline.query_prompt,
            document_prompt=pipeline.document_prompt,
            include_prompt=pipeline.include_prompt,
            lowercase=pipeline.lowercase,
            vocabulary=vocabulary,
            files={path.name: file_digest(path) for path in sorted(fresh.iterdir())},
            source=source,
        )
        spec.save(fresh / SPEC_FILE)
    return spec
