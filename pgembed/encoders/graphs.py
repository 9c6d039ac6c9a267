"""The files of an encoder's folder that hold graphs, and what each is for."""

from __future__ import annotations

MODEL_FILE = "model.onnx"  # float32, padded batches: the CPU's, and any device's
INT8_FILE = "model.int8.onnx"  # linear layers in 8 bit, for the CPU
CUDA_FILE = "model.cuda.onnx"  # float16, packed texts
QUERY_FOLDER = "query"  # an encoder of its own for the queries, where a model has two towers
WEIGHTS_FILE = "weights.bin"
