"""From a model folder to an encoder folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pgembed.encoders.export import pipeline as pipelines
from pgembed.encoders.export.direct import Direct
from pgembed.encoders.export.folder import written_whole
from pgembed.encoders.export.pipeline import Pipeline
from pgembed.encoders.export.ready import Ready, find
from pgembed.encoders.export.tokenizer import copy_tokenizer
from pgembed.encoders.export.weights import digest, file_digest, has_weights
from pgembed.encoders.graphs import QUERY_FOLDER
from pgembed.encoders.spec import SPEC_FILE, EncoderSpec
from pgembed.encoders.tokenizing import open_tokenizer
from pgembed.exc import EncoderFilesError, UnsupportedArchitectureError

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
    documents = pipelines.read(folder)
    queries = pipelines.read(folder, route="query") if pipelines.has_towers(folder) else None
    with written_whole(target, overwrite=overwrite) as fresh:
        tower = ""
        if queries is not None:
            (fresh / QUERY_FOLDER).mkdir()
            spec = _write(queries, fresh / QUERY_FOLDER, name=f"{name or target.name}-query", source=source)
            tower = spec.query_fingerprint
        return _write(
            documents,
            fresh,
            name=name or target.name,
            source=source,
            expected=expected,
            query_tower=tower,
        )


def _write(
    pipeline: Pipeline,
    folder: Path,
    *,
    name: str,
    source: str,
    expected: str | None = None,
    query_tower: str = "",
) -> EncoderSpec:
    """Write one encoder into ``folder``, which exists."""
    model = _model(pipeline)
    checksum = digest(model.files)
    if expected is not None and checksum != expected:
        raise EncoderFilesError(pipeline.folder, f"weights with SHA-256 {checksum}", needed=expected)
    unstated = _LIMIT_UNSTATED if pipeline.first == "Transformer" else model.token_limit
    _check_vocabulary(pipeline, model.vocabulary)
    width = model.write(folder)
    copy_tokenizer(pipeline, folder / pipeline.tokenizer.name)
    if (pipeline.folder / "config.json").is_file():
        shutil.copyfile(pipeline.folder / "config.json", folder / "config.json")
    spec = EncoderSpec(
        name=name,
        architecture=model.architecture,
        weights=checksum,
        tokenizer=file_digest(folder / pipeline.tokenizer.name),
        width=width,
        dimensions=min(pipeline.dimensions or width, width),
        max_tokens=min(pipeline.max_tokens or unstated, model.token_limit),
        token_limit=model.token_limit,
        pooling=pipeline.pooling,
        steps=tuple(str(step) for step in pipeline.steps),
        normalize=pipeline.normalize,
        query_prompt=pipeline.query_prompt,
        document_prompt=pipeline.document_prompt,
        query_tower=query_tower,
        include_prompt=pipeline.include_prompt,
        lowercase=pipeline.lowercase,
        special_tokens=pipeline.first == "Transformer",
        vocabulary=model.vocabulary,
        files={path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()},
        source=source,
    )
    spec.save(folder / SPEC_FILE)
    return spec


def _model(pipeline: Pipeline) -> Direct | Ready:
    """The model, built from its weights if that is possible, else around a ready ONNX file."""
    ready = find(pipeline.folder)
    if ready is not None and not has_weights(pipeline.folder):
        return Ready(pipeline, ready)
    try:
        return Direct(pipeline)
    except UnsupportedArchitectureError:
        if ready is None:
            raise
    return Ready(pipeline, ready)


def _check_vocabulary(pipeline: Pipeline, rows: int) -> None:
    """Refuse a tokenizer whose ids reach beyond the embedding table."""
    highest = open_tokenizer(pipeline.folder, max_tokens=8).highest_id
    if rows and highest >= rows:
        raise EncoderFilesError(
            pipeline.tokenizer,
            f"token ids up to {highest}",
            needed=f"ids below {rows}, the rows of the embedding table, so the tokenizer of this model",
        )
