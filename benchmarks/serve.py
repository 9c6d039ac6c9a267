"""What batching across requests gains, and what bad clients of ``pgembed serve`` can do to good ones.

Usage::

    python benchmarks/serve.py [--encoder NAME_OR_PATH] [--precision fp32 int8] [--clients 64] [--seconds 8]
    python benchmarks/serve.py --overload [--other CHECKOUT] [--rounds 3]

The same server runs twice, in a process of its own: as it is, and with batches of one request, each its own
forward pass. The clients, connections of one other process, send search queries of about 4 to 12 tokens, each
as soon as the last answer is there; on a small machine they take their share of the cores. Beside it stand
the processor time that the server takes for a request, which other work on the machine disturbs less, and
what the machine allows: the same texts in this process without any server, one by one and in batches as large
as there are clients.

With ``--overload``: what it costs to start the server, a load as above, how long one short text waits beside
a request of 400 long ones, the memory that 40 unfinished bodies of 15 MB take, and how long a good client
waits beside 1,100 connections that never finish their headers (where the process may open 1,024 files). With
``--other``, another version of pgembed is measured in turn, and the ratios are printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import corpus

from pgembed.encoders import Encoder, packaged

ROOT = Path(__file__).parents[1]
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def queries(count: int) -> list[str]:
    """Different search queries of two to six words."""
    words = itertools.cycle((2, 3, 4, 5, 6, 3, 4))
    return list(dict.fromkeys(" ".join(text.split()[: next(words)]) for text in corpus.short(count)))


def serve(encoder: str, precision: str, batch: int) -> None:
    """Serve until the process is ended; prints the port, and the seconds that the server took to listen."""
    opened = Encoder(encoder, precision=precision, query_cache=0)
    opened.open()
    start = time.perf_counter()
    from pgembed.encoders.serving import Limits, Server

    server = Server([opened], port=0, limits=Limits(batch=batch))
    print(server.server_port, time.perf_counter() - start, flush=True)
    server.serve_forever()


@contextmanager
def serving(
    encoder: str, precision: str, batch: int, checkout: Path = ROOT
) -> Iterator[tuple[int, float, subprocess.Popen[str]]]:
    """A server in a process of its own: its port, the seconds to listen, and the process."""
    command = [sys.executable, "-W", "ignore", __file__, "--serve", encoder, precision, str(batch)]
    few_files = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (1024, 1024))
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        preexec_fn=few_files,
    )
    assert process.stdout is not None
    try:
        port, seconds = process.stdout.readline().split()
        yield int(port), float(seconds), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wire(content: object) -> bytes:
    """A request for embeddings."""
    body = json.dumps(content).encode()
    return HEAD % len(body) + body


def load(port: int, clients: int, seconds: float) -> list[float]:
    """Latencies of the requests of this many connections, in seconds; the first second warms up."""
    texts = itertools.cycle(queries(4000))
    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytes] = {}

    def send(client: socket.socket) -> None:
        sent[client], received[client] = time.perf_counter(), b""
        client.sendall(wire({"input": next(texts), "encoding_format": "base64"}))

    for _ in range(clients):
        client = socket.create_connection(("127.0.0.1", port))
        selector.register(client, selectors.EVENT_READ)
        send(client)
    latencies = []
    start = time.perf_counter() + 1
    while (now := time.perf_counter()) < start + seconds:
        for key, _ in selector.select(1):
            client = key.fileobj  # type: ignore[assignment]
            received[client] += client.recv(65536)
            head, blank, body = received[client].partition(b"\r\n\r\n")
            if blank and len(body) == int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]):
                assert head.startswith(b"HTTP/1.1 200"), body
                if now > start:
                    latencies.append(time.perf_counter() - sent[client])
                send(client)
    for client in sent:
        client.close()
    return latencies


def processor_seconds(process: int) -> float:
    """What a process has used so far, all threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """A run against one server: the latency of each request, and the processor time of the server."""

    latencies: list[float]
    processor: float


def measured(encoder: str, precision: str, batch: int, clients: int, seconds: float) -> Run:
    """A run against a server of its own."""
    with serving(encoder, precision, batch) as (port, _, process):
        before = processor_seconds(process.pid)
        latencies = load(port, clients, seconds)
        # the second that warms up is in it, with its requests
        share = seconds / (seconds + 1)
        return Run(latencies, (processor_seconds(process.pid) - before) * share)


def without_server(encoder: Encoder, batch: int, seconds: float) -> float:
    """Texts per second, in batches of a fixed size."""
    texts = itertools.cycle(queries(4000))
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        encoder.encode_documents(itertools.islice(texts, batch))
        count += batch
    return count / (time.perf_counter() - start)


def compared(encoder: str, precision: str, clients: int, seconds: float, rounds: int) -> Iterator[str]:
    """Lines of the table for one precision."""
    batches = {"one by one": 1, "batched": 256}
    runs: dict[str, list[Run]] = {name: [] for name in batches}
    ceilings: dict[str, list[float]] = {name: [] for name in batches}
    with Encoder(encoder, precision=precision) as opened:
        opened.open()
        for _ in range(rounds):
            for name, batch in batches.items():
                runs[name].append(measured(encoder, precision, batch, clients, seconds))
            for name, batch in batches.items():
                ceilings[name].append(without_server(opened, min(batch, clients), seconds / 4))
    rates, costs = {}, {}
    for name, several in runs.items():
        every = list(itertools.chain(*(run.latencies for run in several)))
        p95 = statistics.quantiles(every, n=20)[-1]
        rates[name] = statistics.median(len(run.latencies) for run in several) / seconds
        costs[name] = statistics.median(run.processor / len(run.latencies) for run in several)
        yield (
            f"{precision:6}{name:12}{rates[name]:11.0f}{1000 * statistics.median(every):9.0f} ms"
            f"{1000 * p95:7.0f} ms{1000 * costs[name]:11.2f} ms{statistics.median(ceilings[name]):16.0f}"
        )
    ratio = rates["batched"] / rates["one by one"]
    cost = costs["one by one"] / costs["batched"]
    ceiling = statistics.median(ceilings["batched"]) / statistics.median(ceilings["one by one"])
    yield f"{precision:6}ratio {ratio:17.2f}{cost:36.2f}{ceiling:16.2f}"


# --- bad clients --------------------------------------------------------------------------------------


def waited(port: int, content: object, patience: float = 60.0) -> float:
    """Seconds that a new connection waits for its answer; infinite where there is none."""
    start = time.perf_counter()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
            client.sendall(wire(content))
            if not client.recv(65536).startswith(b"HTTP/1.1 200"):
                return float("inf")
    except OSError:
        return float("inf")
    return time.perf_counter() - start


def beside_long_ones(port: int) -> dict[str, float]:
    """One short text beside a request of 400 long ones."""
    waited(port, {"input": corpus.long(8)})  # warm
    large = {"input": [f"{number} {text}" for number, text in enumerate(corpus.long(400))]}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(waited, port, large, 600.0)
        time.sleep(1.0)
        short = waited(port, {"input": "a short text"}, 600.0)
        return {"short text beside 400 long ones, s": short, "the 400 long ones, s": future.result()}


def unfinished_bodies(port: int, process: int) -> dict[str, float]:
    """The memory that 40 unfinished bodies of 15 MB take, and a good client meanwhile."""
    before = memory(process, "VmRSS")
    clients = []
    for _ in range(40):
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        clients[-1].sendall(HEAD % 15_000_001)
        with suppress(OSError):
            for _ in range(150):
                clients[-1].sendall(b"x" * 100_000)
    taken = memory(process, "VmHWM") - before
    latency = waited(port, {"input": "a short text"}, 10.0)
    for client in clients:
        client.close()
    return {"40 bodies of 15 MB, MB": taken, "short text beside them, s": latency}


def slow_connections(port: int) -> dict[str, float]:
    """A good client beside 1,100 connections that send half of their headers."""
    clients = []
    for _ in range(1100):
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        clients[-1].sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n")
    time.sleep(1.0)
    latencies = [waited(port, {"input": f"a short text {number}"}, 5.0) for number in range(5)]
    for client in clients:
        client.close()
    return {"beside 1,100 slow connections, s": statistics.median(latencies)}


def memory(process: int, name: str) -> float:
    """A figure of a process's memory, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


def overloaded(encoder: str, checkout: Path, clients: int, seconds: float) -> dict[str, float]:
    """All figures of one version."""
    figures = {}
    with serving(encoder, "fp32", 256, checkout) as (port, to_listen, process):
        figures["import and listen, ms"] = 1000 * to_listen
        figures["memory at start, MB"] = memory(process.pid, "VmRSS")
        before = processor_seconds(process.pid)
        latencies = load(port, clients, seconds)
        figures[f"requests/s of {clients} clients"] = len(latencies) / seconds
        figures["their p95, ms"] = 1000 * statistics.quantiles(latencies, n=20)[-1]
        used = (processor_seconds(process.pid) - before) * seconds / (seconds + 1)
        figures["processor for a request, ms"] = 1000 * used / len(latencies)
        figures |= beside_long_ones(port)
    with serving(encoder, "fp32", 256, checkout) as (port, _, process):
        waited(port, {"input": "warm"})
        figures |= unfinished_bodies(port, process.pid)
    with serving(encoder, "fp32", 256, checkout) as (port, _, process):
        figures |= slow_connections(port)
    return figures


def overload(encoder: str, other: Path | None, clients: int, seconds: float, rounds: int) -> Iterator[str]:
    """Lines of the table."""
    versions = {"this": ROOT} | ({"other": other} if other is not None else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(rounds):
        for name, checkout in versions.items():
            found[name].append(overloaded(encoder, checkout, clients, seconds))
    yield f"{'':36}" + "".join(f"{name:>12}" for name in versions) + ("       ratio" if other else "")
    for figure in found["this"][0]:
        medians = [statistics.median(figures[figure] for figures in several) for several in found.values()]
        ratio = f"{medians[0] / medians[1]:12.3f}" if other else ""
        yield f"{figure:36}" + "".join(f"{median:12.3f}" for median in medians) + ratio


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder")
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--other", type=Path, help="a checkout of another version")
    options = parser.parse_args()
    encoder = options.encoder or str(packaged("all-MiniLM-L6-v2"))
    if options.overload:
        for line in overload(encoder, options.other, options.clients, options.seconds, options.rounds):
            print(line, flush=True)
        return
    print(f"{options.clients} clients, single short texts, medians of {options.rounds} interleaved runs")
    print(f"{'':18}{'requests/s':>11}{'median':>12}{'p95':>10}{'processor':>14}{'without server':>16}")
    for precision in options.precision:
        for line in compared(encoder, precision, options.clients, options.seconds, options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
