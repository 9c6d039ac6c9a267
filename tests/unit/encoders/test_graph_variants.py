"""The graph for CUDA, checked on the CPU: its structure, and its arithmetic in ONNX's reference evaluator.

The operators that only CUDA has are written out here in numpy, after their documentation in ONNX Runtime
(``docs/ContribOperators.md``).
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.onnx.feeds import packed
from pgembed.encoders.text.tokenizer import Tokens, open_tokenizer
from tests.unit.encoders.models import MODELS, TEXTS

NAMES = ["bert", "pooling", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert"]


class PackedMultiHeadAttention(OpRun):
    op_domain = "com.microsoft"

    def _run(self, query, key, value, _, offset, ends, bias=None, num_heads=None, **_attributes):
        result = np.empty_like(query)
        for first, last in itertools.pairwise(ends):
            heads = [
                part[first:last].reshape(last - first, num_heads, -1).swapaxes(0, 1)
                for part in (query, key, value)
            ]
            scores = heads[0] @ heads[1].swapaxes(1, 2) / np.float16(math.sqrt(heads[0].shape[-1]))
            if bias is not None:
                scores = scores + bias[0, :, : last - first, : last - first]
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attended = weights / weights.sum(axis=-1, keepdims=True) @ heads[2]
            result[first:last] = attended.swapaxes(0, 1).reshape(last - first, -1)
        return (result,)


class RestorePadding(OpRun):
    op_domain = "com.microsoft"

    def _run(self, tokens, offset, **_):
        padded = np.zeros((offset.size, tokens.shape[1]), dtype=tokens.dtype)
        padded[offset.ravel()[: len(tokens)]] = tokens
        return (padded.reshape(*offset.shape, -1),)


class RotaryEmbedding(OpRun):
    op_domain = "com.microsoft"

    def _run(self, values, positions, cosines, sines, **_):
        half = cosines.shape[1]
        heads = values.reshape(*values.shape[:2], -1, 2 * half)
        left, right = heads[..., :half], heads[..., half:]
        cosine, sine = cosines[positions][:, :, None], sines[positions][:, :, None]
        return (
            np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1).reshape(
                values.shape
            ),
        )


class Gelu(OpRun):
    op_domain = "com.microsoft"

    def _run(self, values, **_):
        return ((values * (1 + np.vectorize(math.erf)(values / math.sqrt(2))) / 2).astype(values.dtype),)


OPERATORS = [PackedMultiHeadAttention, RestorePadding, RotaryEmbedding, Gelu]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(MODELS / request.param, tmp_path_factory.mktemp("packed") / request.param)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_vectors(folder: Path) -> None:
    encoder = Encoder(folder)
    spec = encoder.spec
    tokenizer = open_tokenizer(folder, max_tokens=spec.max_tokens, lowercase=spec.lowercase)
    feed = packed(tokenizer([spec.document_prompt + text for text in TEXTS]), np.array([4, 0, 6, 2, 1, 8]))
    if not spec.include_prompt:
        feed["pooling_mask"] = feed["attention_mask"].copy()
        feed["pooling_mask"][:, : tokenizer.leading(spec.document_prompt)] = 0
    evaluator = ReferenceEvaluator(onnx.load(folder / "model.cuda.onnx"), new_ops=OPERATORS)
    (vectors,) = evaluator.run(["embedding"], feed)
    wanted = np.load(MODELS / folder.name / "golden.npz")["documents"][[4, 0, 6, 2, 1, 8]]
    cosine = (vectors * wanted).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
    assert vectors.dtype == np.float32
    assert cosine.min() > 0.9999


def test_structure(folder: Path) -> None:
    model = onnx.load(folder / "model.cuda.onnx", load_external_data=False)
    layers = json.loads((folder / "config.json").read_text())
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("PackedMultiHeadAttention") == layers.get("num_hidden_layers", layers.get("n_layers"))
    assert kinds.count("RestorePadding") == 1
    assert "MultiHeadAttention" not in kinds
    # 16 bit up to the pooling, 32 bit from there on
    inferred = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    border = kinds.index("RestorePadding")
    for index, node in enumerate(model.graph.node):
        if node.op_type in ("Gemm", "MatMul", "LayerNormalization"):
            kind = inferred.get(node.output[0])
            assert kind in (None, TensorProto.FLOAT16 if index < border else TensorProto.FLOAT), node.name
    # no weights of its own
    cpu = onnx.load(folder / "model.onnx", load_external_data=False)
    stored = {
        entry.value for t in cpu.graph.initializer for entry in t.external_data if entry.key == "offset"
    }
    assert {
        entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "offset"
    } <= stored


def test_packed_inputs() -> None:
    tokens = Tokens.of([[1, 2, 3], [], [4], [5, 6]], limit=8)
    feed = packed(tokens, np.array([0, 3, 2]))
    assert feed["input_ids"].tolist() == [1, 2, 3, 5, 6, 4]
    assert feed["position_ids"].tolist() == [0, 1, 2, 0, 1, 0]
    assert feed["cumulative_sequence_length"].tolist() == [0, 3, 5, 6]
    assert feed["token_offset"].tolist() == [[0, 1, 2], [3, 4, 6], [5, 7, 8]]
    assert feed["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert (feed["token_offset"].dtype, feed["input_ids"].dtype) == (np.int32, np.int64)
