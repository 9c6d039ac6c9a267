"""How fast on a GPU: Encoder in fp16 beside sentence-transformers in fp16 with SDPA.

Usage, in an environment with onnxruntime-gpu, torch and sentence-transformers as well as pgembed::

    python benchmarks/gpu.py MODEL_DIR [--shapes minilm base large] [--texts 20000] [--rounds 5]

``MODEL_DIR`` is a BERT of sentence-transformers (all-MiniLM-L6-v2, say); its tokenizer and pipeline are
taken, its weights replaced by random ones in each of the shapes, because speed does not depend on their
values. Texts are of mixed length. Printed are medians of interleaved runs, the arithmetic on real tokens as a
share of the speed of a large fp16 matrix product, how busy the GPU was during ours, and the least cosine
between our fp16 vectors and our fp32 vectors from the CPU. ``--device cpu`` runs the same in fp32, to try the
command out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from encoder import medians, operations

from pgembed.encoders import Encoder, export_onnx
from pgembed.encoders.text.tokenizer import open_tokenizer

# layers, width, inner width, heads
SHAPES = {
    "tiny": (2, 128, 512, 4),
    "minilm": (6, 384, 1536, 12),
    "base": (12, 768, 3072, 12),
    "large": (24, 1024, 4096, 16),
}


def random_model(model_dir: Path, folder: Path, shape: tuple[int, int, int, int]) -> dict[str, int]:
    """A model folder with random weights of a shape; returns its configuration."""
    import torch
    from transformers import AutoModel, BertConfig

    layers, width, inner, heads = shape
    shutil.copytree(model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx"))
    given = json.loads((model_dir / "config.json").read_text())
    config = BertConfig(
        vocab_size=given["vocab_size"],
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling = {key: width if key.endswith("dimension") else value for key, value in pooling.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def matmul_speed(device: str) -> float:
    """Floating point operations a second of a large matrix product, in fp16 on a GPU and fp32 on the CPU."""
    import torch

    size, kind = (8192, torch.float16) if device != "cpu" else (1024, torch.float32)
    left = torch.rand((size, size), dtype=kind, device=device)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            left @ left
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
    return best


def reference(folder: Path, device: str) -> Any:
    """sentence-transformers with SDPA, in fp16 on a GPU, with a batch size that suits one."""
    import torch
    from sentence_transformers import SentenceTransformer

    kind = torch.float32 if device == "cpu" else torch.float16
    options = {"attn_implementation": "sdpa", "dtype": kind}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=options)
    batch = 32 if device == "cpu" else 256
    return lambda texts: model.encode(texts, batch_size=batch, convert_to_numpy=True, show_progress_bar=False)


class Busy:
    """Share of the time in which the GPU had work, sampled by the driver while the block runs."""

    def __init__(self, device: str) -> None:
        self._command = [
            "nvidia-smi",
            f"--id={device.partition(':')[2] or '0'}",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "--loop-ms=100",
        ]
        self._samples: list[float] = []

    def __enter__(self) -> Busy:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        printed, _ = self._process.communicate()
        self._samples = [float(line) for line in printed.splitlines() if line.strip().isdecimal()]

    def __str__(self) -> str:
        # The first and the last second are those in which the run begins and ends.
        steady = self._samples[10:-10] or self._samples
        return f"{statistics.mean(steady):.0f} %" if steady else "not sampled"


def long_run(texts: list[str], count: float) -> list[str]:
    """So many different texts, for one call of some seconds."""
    return [f"{index} {texts[index % len(texts)]}" for index in range(max(int(count), len(texts)))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["minilm", "base", "large"], choices=SHAPES)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    texts = corpus.many(options.texts)
    speed = matmul_speed(options.device)
    print(f"matrix product {speed / 1e12:.2f} TFLOP/s; {len(texts)} texts of mixed length")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            config = random_model(options.model_dir, folder, SHAPES[shape])
            exported = export_onnx(folder, Path(scratch) / "encoder")
            encoder = Encoder(exported, device=options.device)
            lengths = open_tokenizer(exported, max_tokens=encoder.max_tokens)(texts).lengths
            contestants = {
                "pgembed": encoder.encode_documents,
                "sentence-transformers": reference(folder, options.device),
            }
            measured = medians(contestants, texts, options.rounds)
            for name, seconds in measured.items():
                share = operations(config, lengths) / seconds / speed
                print(
                    f"{shape:8}{name:24}{len(texts) / seconds:9.0f} texts/s"
                    f"{lengths.sum() / seconds:11.0f} tokens/s"
                    f"{share:6.0%} of the product, pgembed is {seconds / measured['pgembed']:.2f}x"
                )
            if options.device != "cpu":
                many = long_run(texts, 10 * len(texts) / measured["pgembed"])
                with Busy(options.device) as busy:
                    encoder.encode_documents(many)
                print(f"{shape:8}GPU busy {busy} of a run of {len(many)} texts")
            sample = texts[:: max(len(texts) // 200, 1)]
            with Encoder(exported, device="cpu") as exact:
                cosine = np.einsum(
                    "ij,ij->i", exact.encode_documents(sample), encoder.encode_documents(sample)
                )
            print(f"{shape:8}least cosine to fp32 on the CPU {cosine.min():.6f}")


if __name__ == "__main__":
    main()
