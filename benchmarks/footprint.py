"""How light: cold start (import, open, first vector) and peak memory, beside fastembed.

Usage, in an environment that has torch, transformers and fastembed as well as pgembed::

    python benchmarks/footprint.py MODEL_DIR [--texts 2000] [--rounds 5]

Every measurement is a process of its own; cold starts are interleaved and their medians printed. Memory is
that of encoding so many texts of mixed length at once, the resulting vectors included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def contestant(name: str, folder: str, texts: int) -> None:
    """Run in a process of its own: prints seconds to the first vector and peak memory in MiB."""
    start = time.perf_counter()
    if name == "pgembed":
        from pgembed.encoders import Encoder

        encode = Encoder(Path(folder)).encode_documents
    else:
        from contestants import fastembed

        encode = fastembed(Path(folder), len(os.sched_getaffinity(0)))
    encode(["a first text"])
    seconds = time.perf_counter() - start
    if texts:
        import corpus

        encode(corpus.mixed(texts))
    print(seconds, peak_memory())


def peak_memory() -> float:
    """MiB; from the kernel's own account, because getrusage() counts what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(name: str, folder: Path, texts: int) -> tuple[float, float]:
    """Seconds and MiB of one process."""
    command = [sys.executable, "-W", "ignore", __file__, "--contestant", name, str(folder), str(texts)]
    seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from contestants import graph_for_fastembed

    from pgembed.encoders import export_onnx

    with tempfile.TemporaryDirectory() as scratch:
        folders = {"pgembed": Path(scratch) / "pgembed", "fastembed": Path(scratch) / "fastembed"}
        export_onnx(options.model_dir, folders["pgembed"])
        graph_for_fastembed(options.model_dir, folders["fastembed"])
        starts: dict[str, list[tuple[float, float]]] = {name: [] for name in folders}
        for _ in range(options.rounds):
            for name, folder in folders.items():
                starts[name].append(measured(name, folder, 0))
        print(f"{'':12}{'cold start':>12}{'memory then':>14}{f'peak, {options.texts} texts':>22}")
        for name, folder in folders.items():
            seconds, memory = (statistics.median(values) for values in zip(*starts[name], strict=True))
            peak = measured(name, folder, options.texts)[1]
            print(f"{name:12}{seconds:10.2f} s{memory:10.0f} MiB{peak:18.0f} MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        contestant(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
