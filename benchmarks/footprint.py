"""How light: cold start (import, open, first vector) and peak memory, beside fastembed.

Usage, in an environment that has torch, transformers and fastembed as well as pgembed::

    python benchmarks/footprint.py MODEL_DIR [--texts 100000] [--prefix 1000] [--rounds 5]

Every measurement is a process of its own; cold starts are interleaved and their medians printed. Memory is
that of encoding texts of mixed length in one call and collecting their vectors as one float32 array, texts
and vectors included. fastembed gets only the first texts (``--prefix``), because all would take it hours:
when its peak is above ours with a part of the work, it is above ours with all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def contestant(name: str, folder: str, file: str, texts: int) -> None:
    """Run in a process of its own: prints seconds to the first vector, seconds of all, peak memory in MiB."""
    start = time.perf_counter()
    if name == "pgembed":
        from pgembed.encoders import Encoder

        encode = Encoder(Path(folder)).encode_documents
    else:
        from contestants import fastembed

        encode = fastembed(Path(folder), len(os.sched_getaffinity(0)))
    encode(["a first text"])
    first = time.perf_counter() - start
    if texts:
        with open(file, encoding="utf-8") as lines:
            given = [json.loads(line) for line, _ in zip(lines, range(texts), strict=False)]
        start = time.perf_counter()
        vectors = encode(given)
        assert (vectors.dtype, len(vectors)) == ("float32", texts)
    print(first, time.perf_counter() - start, peak_memory())


def peak_memory() -> float:
    """MiB; from the kernel's own account, because getrusage() counts what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(name: str, folder: Path, file: Path, texts: int) -> tuple[float, float, float]:
    """What :func:`contestant` prints."""
    arguments = ["--contestant", name, str(folder), str(file), str(texts)]
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, seconds, memory = map(float, output.split()[-3:])
    return first, seconds, memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--prefix", type=int, help="give fastembed the first N of them; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import corpus
    from contestants import graph_for_fastembed

    from pgembed.encoders import export_onnx

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("fastembed", "pgembed")}
        graph_for_fastembed(options.model_dir, folders["fastembed"])
        export_onnx(options.model_dir, folders["pgembed"])
        file = Path(scratch) / "texts.jsonl"
        texts = corpus.many(options.texts)
        file.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        starts: dict[str, list[tuple[float, ...]]] = {name: [] for name in folders}
        for _ in range(options.rounds):
            for name, folder in folders.items():
                starts[name].append(measured(name, folder, file, 0))
        print(f"{'':12}{'cold start':>12}{'memory then':>14}", flush=True)
        for name, runs in starts.items():
            first, _, memory = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{name:12}{first:10.2f} s{memory:10.0f} MiB", flush=True)
        for name, folder in folders.items():
            count = min(options.prefix or options.texts, options.texts)
            count = count if name == "fastembed" else options.texts
            _, seconds, memory = measured(name, folder, file, count)
            print(f"{name:12}{count} texts in {seconds:.0f} s, peak {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contestant"]:
        contestant(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
