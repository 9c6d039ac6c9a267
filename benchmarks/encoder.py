"""How fast: Encoder beside sentence-transformers and fastembed on the same texts, in one run.

Usage, in an environment that has torch and sentence-transformers (and fastembed) as well as pgembed::

    python benchmarks/encoder.py MODEL_DIR [--rounds 5] [--texts 400] [--int8] [--kinds mixed] [--skip ...]

``MODEL_DIR`` is the sentence-transformers folder of the model; all contestants compute from its weights, in
float32 on the CPU. Their runs are interleaved, so that a busy machine is unfair to none; medians are
printed, and the arithmetic done on real tokens (padding does not count) as a share of the speed of a large
matrix product.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from contestants import Encode, fastembed, graph_for_fastembed, sentence_transformers

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.onnx.feeds import fresh
from pgembed.encoders.text.tokenizer import TOKENIZER_FILE, Tokenizer
from pgembed.encoders.threads import available_threads

KINDS = ("short", "mixed", "256 tokens")


def sgemm_speed(threads: int) -> float:
    """Floating point operations a second of a float32 matrix product, the better of torch's and numpy's."""
    import torch

    torch.set_num_threads(threads)
    left, right = (np.random.default_rng(seed).random((1536, 1536), dtype=np.float32) for seed in (0, 1))
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    best = 0.0
    for product in (lambda: tensors[0] @ tensors[1], lambda: left @ right):
        for _ in range(8):
            start = time.perf_counter()
            product()
            best = max(best, 2 * 1536**3 / (time.perf_counter() - start))
    return best


def operations(config: dict[str, int], lengths: np.ndarray) -> float:
    """Floating point operations of a transformer on texts of these many tokens."""
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    linear = 2 * lengths * (4 * width * width + 2 * width * inner)
    attention = 4 * lengths * lengths * width
    return float(layers * (linear + attention).sum())


def medians(contestants: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a warm-up, one run of each in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for encode in contestants.values():
        encode(texts[: len(texts) // 4])
    for _ in range(rounds):
        for name, encode in contestants.items():
            start = time.perf_counter()
            encode(texts)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def query_latency(encoder: Encoder, rounds: int = 200) -> tuple[float, float]:
    """Median seconds of a single query, nothing remembered, and of its bare forward pass."""
    runtime: Any = encoder._opened()
    query = "how do I compress file"
    feed = runtime._feed(runtime._tokenizer([f"{query} 1"]), np.zeros(1, dtype=np.intp), 0, fresh)
    seconds: dict[str, list[float]] = {"whole": [], "bare": []}
    for index in range(rounds):
        start = time.perf_counter()
        encoder.encode_queries([f"{query} {index}"])
        middle = time.perf_counter()
        runtime._session.run(["embedding"], feed)
        seconds["whole"].append(middle - start)
        seconds["bare"].append(time.perf_counter() - middle)
    return statistics.median(seconds["whole"]), statistics.median(seconds["bare"])


def installed(packages: Sequence[str]) -> str:
    """Packages and their versions."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--int8", action="store_true", help="measure our 8 bit vectors as well")
    parser.add_argument("--skip", nargs="+", default=(), help="contestants to leave out")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    threads = available_threads()
    config = json.loads((options.model_dir / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        encoder = Encoder(export_onnx(options.model_dir, scratch / "encoder"))
        contestants: dict[str, Encode] = {"pgembed": encoder.encode_documents}
        if options.int8:
            contestants["pgembed int8"] = Encoder(scratch / "encoder", precision="int8").encode_documents
        contestants["sentence-transformers"] = sentence_transformers(options.model_dir)
        if importlib.util.find_spec("fastembed") and "fastembed" not in options.skip:
            graph_for_fastembed(options.model_dir, scratch / "fastembed")
            contestants["fastembed"] = fastembed(scratch / "fastembed", threads)
        speed = sgemm_speed(threads)
        packages = ("torch", "sentence-transformers", "fastembed", "onnxruntime", "tokenizers", "numpy")
        print(f"{installed(packages)}; {threads} threads; sgemm {speed / 1e9:.0f} GFLOP/s")
        tokenizer = Tokenizer(scratch / "encoder" / TOKENIZER_FILE, max_tokens=encoder.max_tokens)
        kinds = {
            "short": corpus.short(2 * options.texts),
            "mixed": corpus.mixed(options.texts),
            "256 tokens": corpus.long(options.texts // 6),
        }
        whole, bare = query_latency(encoder)
        print(f"a single query: {1000 * whole:.2f} ms, {whole / bare:.2f}x its forward pass")
        print(f"{'texts':12}{'encoder':24}{'texts/s':>9}{'tokens/s':>10}{'of sgemm':>10}{'pgembed is':>12}")
        for kind in options.kinds:
            texts = kinds[kind]
            lengths = tokenizer(texts).lengths
            measured = medians(contestants, texts, options.rounds)
            for name, seconds in measured.items():
                share = operations(config, lengths) / seconds / speed
                ratio = seconds / measured["pgembed"]
                print(
                    f"{kind:12}{name:24}{len(texts) / seconds:9.0f}{lengths.sum() / seconds:10.0f}"
                    f"{share:10.0%}{ratio:11.2f}x"
                )


if __name__ == "__main__":
    main()
